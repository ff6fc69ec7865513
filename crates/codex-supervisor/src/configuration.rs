//! The settings and tables in force, and what a changed file changes.
//!
//! A file that cannot be used changes nothing: what was good last stays in force, and the problem is told.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use codex_control::EndpointId;
use codex_control::endpoint::{self, Endpoint};
use codex_control::ipc::Problem;
use codex_control::paths::Paths;
use codex_control::report::{self, Hinted};
use codex_control::settings::{EndpointSettings, Settings, SettingsError};
use codex_control::tables::Tables;
use codex_control::tables::incident::{self, IncidentTables};

use codex_control::registry::fingerprint;

/// What is in force.
#[derive(Clone, Debug)]
pub(crate) struct Configuration {
    /// The person's settings; all defaults while there have never been good ones.
    pub(crate) settings: Settings,
    /// The tables, with the person's rows.
    pub(crate) tables: Tables,
    /// The tables of the incident engine, with the person's rows.
    pub(crate) incident_tables: IncidentTables,
    /// What is wrong with the files as they are now.
    pub(crate) problem: Option<Problem>,
    stamps: Vec<Option<Stamp>>,
}

/// Tells one content of a file from the next without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    changed: (i64, i64),
    inode: u64,
    bytes: u64,
}

impl Configuration {
    /// Reads everything for the first time.
    pub(crate) fn load(paths: &Paths) -> Self {
        let (tables, problems) = Tables::load(paths);
        let mut configuration = Self {
            settings: Settings::default(),
            tables,
            incident_tables: IncidentTables::embedded(),
            problem: problems.first().map(told),
            stamps: stamps(paths),
        };
        configuration.reload_incident_tables(paths);
        match Settings::load(&paths.settings()) {
            Ok(settings) => configuration.settings = settings,
            Err(error) => configuration.problem = Some(told(&error)),
        }
        configuration
    }

    /// Reads everything again. Says whether what is in force may have changed; if not, `problem` says why, if at all.
    pub(crate) fn reload(&mut self, paths: &Paths) -> bool {
        // Taken first: what is written while we read makes us read once more.
        self.stamps = stamps(paths);
        let settings = match Settings::load(&paths.settings()) {
            Ok(settings) => settings,
            Err(error) => {
                self.problem = Some(told(&error));
                return false;
            }
        };
        let (tables, problems) = Tables::load(paths);
        self.problem = problems.first().map(told);
        if problems.is_empty() {
            self.tables = tables;
        }
        self.reload_incident_tables(paths);
        self.settings = settings;
        true
    }

    /// Takes the tables of the incident engine over, all of them or, where one cannot be used, none.
    fn reload_incident_tables(&mut self, paths: &Paths) {
        match IncidentTables::load_sound(paths.config_folder()) {
            Ok(tables) => self.incident_tables = tables,
            Err(problem) => {
                self.problem.get_or_insert(problem);
            }
        }
    }

    /// Whether a file is not the one that was read last.
    pub(crate) fn is_outdated(&self, paths: &Paths) -> bool {
        stamps(paths) != self.stamps
    }

    /// Every endpoint as it is to run.
    pub(crate) fn plan(&self) -> Vec<Planned> {
        let tables = fingerprint(&format!("{:?}", self.tables));
        let planned = |settings: &EndpointSettings| Planned {
            settings: settings.clone(),
            tables: tables.clone(),
            resolved: endpoint::resolve(&self.settings, &self.tables, settings)
                .map_err(|error| Problem { message: error.to_string(), hint: error.hint() }),
            route: None,
        };
        self.settings.endpoint.iter().map(planned).collect()
    }
}

/// An endpoint as the settings have it, and what it resolves to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Planned {
    /// As in the file.
    pub(crate) settings: EndpointSettings,
    /// What a worker would be given, or why there can be none.
    pub(crate) resolved: Result<Endpoint, Problem>,
    /// [`fingerprint`] of the tables: a worker reads them at its start and looks models up in them.
    pub(crate) tables: String,
    /// The endpoint whose provider and key it uses, if they are not its own; see [`crate::standing`].
    pub(crate) route: Option<EndpointId>,
}

/// What a new plan means for one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// It is new.
    Added(EndpointId),
    /// It is gone.
    Removed(EndpointId),
    /// It is to run differently.
    Changed(EndpointId),
}

/// What differs between two plans: first what goes, then what changes, then what comes. The order in the file alone
/// is no difference.
pub(crate) fn differences(old: &[Planned], new: &[Planned]) -> Vec<Difference> {
    let find = |plan: &[Planned], id: &EndpointId| plan.iter().position(|planned| planned.settings.id == *id);
    let gone = old.iter().filter(|planned| find(new, &planned.settings.id).is_none());
    let mut differences: Vec<Difference> =
        gone.map(|planned| Difference::Removed(planned.settings.id.clone())).collect();
    let changed =
        new.iter().filter(|planned| find(old, &planned.settings.id).is_some_and(|index| old[index] != **planned));
    differences.extend(changed.map(|planned| Difference::Changed(planned.settings.id.clone())));
    let come = new.iter().filter(|planned| find(old, &planned.settings.id).is_none());
    differences.extend(come.map(|planned| Difference::Added(planned.settings.id.clone())));
    differences
}

fn told(error: &SettingsError) -> Problem {
    Problem { message: report::chain(error), hint: error.hint() }
}

fn stamps(paths: &Paths) -> Vec<Option<Stamp>> {
    let tables = ["providers", "models"].iter().chain(incident::TABLES).map(|name| paths.table_override(name));
    std::iter::once(paths.settings()).chain(tables).map(|path| stamp(&path)).collect()
}

/// Follows links: a person may keep the file elsewhere.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(Stamp {
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
        inode: metadata.ino(),
        bytes: metadata.len(),
    })
}

#[cfg(test)]
mod tests {
    use codex_control::files::create_private_folder;

    use super::*;

    const ONE: &str = "[[endpoint]]\nid = \"a\"\nbase_url = \"http://127.0.0.1:1\"\nprotocol = \"responses\"\n";
    const TWO: &str = "[[endpoint]]\nid = \"b\"\npreset = \"zai-coding\"\n";

    struct Home {
        _folder: tempfile::TempDir,
        paths: Paths,
    }

    impl Home {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let home = folder.path().to_str().unwrap();
            let paths =
                Paths::from_environment(&[("HOME", home), ("XDG_RUNTIME_DIR", home)].into_iter().collect()).unwrap();
            create_private_folder(paths.config_folder()).unwrap();
            Self { _folder: folder, paths }
        }

        fn write(&self, text: &str) {
            std::fs::write(self.paths.settings(), text).unwrap();
        }
    }

    fn id(text: &str) -> EndpointId {
        text.parse().unwrap()
    }

    fn plan(text: &str) -> Vec<Planned> {
        let home = Home::new();
        home.write(text);
        let configuration = Configuration::load(&home.paths);
        assert_eq!(configuration.problem, None);
        configuration.plan()
    }

    #[test]
    fn a_broken_file_keeps_the_last_good_settings() {
        let home = Home::new();
        home.write(ONE);
        let mut configuration = Configuration::load(&home.paths);
        home.write(&format!("{ONE}base_ulr = 1\n"));
        assert!(configuration.is_outdated(&home.paths));
        assert!(!configuration.reload(&home.paths));
        assert!(!configuration.is_outdated(&home.paths), "it is read once, not over and over");
        let problem = configuration.problem.clone().unwrap();
        assert!(problem.message.contains("supervisor.toml:5:1: unknown field `base_ulr`"), "{}", problem.message);
        assert_eq!(problem.hint.as_deref(), Some("did you mean `base_url`?"));
        assert_eq!(configuration.settings.endpoint.len(), 1);
        home.write(TWO);
        assert!(configuration.reload(&home.paths));
        assert_eq!((configuration.problem, configuration.settings.endpoint[0].id.clone()), (None, id("b")));
    }

    #[test]
    fn a_file_broken_from_the_start_means_no_endpoints_and_says_so() {
        let home = Home::new();
        home.write("x = [\n");
        let configuration = Configuration::load(&home.paths);
        assert_eq!(configuration.settings, Settings::default());
        assert!(configuration.problem.unwrap().message.contains("supervisor.toml:"));
    }

    #[test]
    fn a_broken_table_keeps_the_last_good_rows() {
        let home = Home::new();
        home.write("[[endpoint]]\nid = \"m\"\npreset = \"mine\"\n");
        let row = "[[provider]]\nid = \"mine\"\nname = \"M\"\nprotocol = \"responses\"\nbase_url = \"http://h\"\nsource = \"me\"\n";
        let table = home.paths.table_override("providers");
        std::fs::write(&table, row).unwrap();
        let mut configuration = Configuration::load(&home.paths);
        let good = configuration.plan();
        assert!(good[0].resolved.is_ok());
        std::fs::write(&table, "[[provider]]\nid = 1\n").unwrap();
        assert!(configuration.reload(&home.paths));
        assert_eq!(configuration.plan(), good);
        assert!(configuration.problem.unwrap().message.contains("providers.toml:"));
    }

    #[test]
    fn a_broken_table_of_the_incident_engine_keeps_the_last_good_rows() {
        const RULE: &str = "[[rule]]\nid = 'upstream_429'\nfault = 'B1'\ndo = ['wait_retry_after']\nmode = 'observe'\n";
        let home = Home::new();
        let table = home.paths.table_override("rules");
        let mut configuration = Configuration::load(&home.paths);
        assert_eq!(configuration.incident_tables, IncidentTables::embedded());
        std::fs::write(&table, RULE).unwrap();
        assert!(configuration.is_outdated(&home.paths));
        assert!(configuration.reload(&home.paths));
        let good = configuration.incident_tables.clone();
        assert_ne!(good, IncidentTables::embedded());
        for (broken, message) in [
            (format!("{RULE}[[rule]]\nid = 'x'\ndo = 'ignore'\n"), "rules.toml:8:6"),
            (format!("{RULE}count = 0\n"), "rules.toml: `upstream_429`: `count` must be 1 to 100"),
        ] {
            std::fs::write(&table, broken).unwrap();
            assert!(configuration.reload(&home.paths));
            let problem = configuration.problem.clone().unwrap();
            assert!(problem.message.contains(message), "{problem:?}");
            assert!(problem.hint.is_some(), "{problem:?}");
            assert_eq!(configuration.incident_tables, good);
        }
        std::fs::remove_file(&table).unwrap();
        assert!(configuration.reload(&home.paths));
        assert_eq!((configuration.incident_tables, configuration.problem), (IncidentTables::embedded(), None));
    }

    #[test]
    fn differences_are_by_endpoint() {
        let (one, two, both) = (plan(ONE), plan(TWO), plan(&format!("{ONE}{TWO}")));
        assert_eq!(differences(&both, &plan(&format!("{TWO}{ONE}"))), [], "order alone is none");
        assert_eq!(differences(&one, &both), [Difference::Added(id("b"))]);
        assert_eq!(differences(&one, &two), [Difference::Removed(id("a")), Difference::Added(id("b"))]);
        let renamed = plan(&format!("{ONE}name = \"New\"\n{TWO}"));
        assert_eq!(differences(&both, &renamed), [Difference::Changed(id("a"))]);
        let limits = plan(&format!("[worker]\nidle_timeout_s = 9\n{ONE}{TWO}"));
        assert_eq!(differences(&both, &limits), [Difference::Changed(id("a")), Difference::Changed(id("b"))]);
        let unresolved = plan(&format!("{ONE}preset = \"nope\"\n"));
        assert!(unresolved[0].resolved.as_ref().is_err_and(|problem| problem.message.contains("preset `nope`")));
        assert_eq!(differences(&one, &unresolved), [Difference::Changed(id("a"))]);
    }
}
