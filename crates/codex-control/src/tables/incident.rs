//! The tables of the incident engine: `faults.toml`, `rules.toml`, `signatures.toml`, `patterns.toml`, `prices.toml`.
//!
//! What each column means stands at the head of each file. [`IncidentTables::check`] finds what serde cannot: names
//! that lead nowhere, rules that can never act, examples that do not fit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{load_override, merge};
use crate::incident::{Action, Actor, Fault, Level, Mode, Observation, TAG_BYTES_MAX, TAGS_MAX};
use crate::ipc::Problem;
use crate::report::{self, Hinted};
use crate::settings::SettingsError;

/// Largest `count` of a rule: what has to be seen a hundred times first is no rule but a statistic.
pub const COUNT_MAX: u32 = 100;
/// Most actions of one rule, one after the other.
pub const ACTIONS_MAX: usize = 2;
/// The tables of which a person may have rows of their own.
pub const TABLES: &[&str] = &["faults", "rules", "signatures", "patterns", "prices"];
/// Longest line in which signatures are looked for; the rest of it is not read.
pub const LINE_BYTES_MAX: usize = 4096;

const FAULTS: &str = include_str!("../../../../config/faults.toml");
const RULES: &str = include_str!("../../../../config/rules.toml");
const SIGNATURES: &str = include_str!("../../../../config/signatures.toml");
const PATTERNS: &str = include_str!("../../../../config/patterns.toml");
const PRICES: &str = include_str!("../../../../config/prices.toml");

/// One row of `faults.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRow {
    /// Which.
    pub id: Fault,
    /// A few words.
    pub name: String,
    /// The tag that begins a fingerprint.
    pub category: String,
    /// F1 to F11.
    #[serde(default)]
    pub observed_as: Vec<String>,
    /// What means this fault.
    pub signs: Vec<Observation>,
    /// How it is noticed.
    pub detected: String,
    /// What a person reads.
    pub says: String,
    /// What a person can do.
    pub hint: Option<String>,
    /// How much it matters.
    #[serde(default = "info")]
    pub level: Level,
    /// What shows that it is over.
    pub success: Vec<Observation>,
    /// Time for it, in seconds.
    #[serde(default = "a_minute")]
    pub within_s: u64,
    /// What silence means.
    #[serde(default)]
    pub silence: Silence,
}

fn info() -> Level {
    Level::Info
}

fn a_minute() -> u64 {
    60
}

/// What it means when nothing was seen after an action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Silence {
    /// It did not help: there is always something to be seen.
    Failure,
    /// Nobody knows.
    #[default]
    Unknown,
}

/// What must also hold for a rule to act.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guard {
    /// Nothing.
    #[default]
    None,
    /// Nothing good came from the provider since the first signal counted.
    NoSuccess,
    /// The worker itself is not well.
    WorkerUnhealthy,
    /// The signal's value is 0, or not known.
    NoBytes,
}

/// One row of `rules.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name.
    pub id: String,
    /// What it is about; `None`: something without a name.
    pub fault: Option<Fault>,
    /// What it counts; empty: all signs of the fault.
    #[serde(default)]
    pub on: Vec<Observation>,
    /// Counts only signals with at least this value.
    pub value_min: Option<u64>,
    /// How many it takes.
    #[serde(default = "one")]
    pub count: u32,
    /// Within this many seconds; 0: in a row.
    #[serde(default)]
    pub window_s: u64,
    /// What must also hold.
    #[serde(default)]
    pub guard: Guard,
    /// What is done, in this order.
    #[serde(rename = "do")]
    pub actions: Vec<Action>,
    /// Seconds in which it does not act again.
    #[serde(default)]
    pub cooldown_s: u64,
    /// What it may do.
    #[serde(default = "auto")]
    pub mode: Mode,
    /// No time to cancel, no growing cooldown.
    #[serde(default)]
    pub at_once: bool,
    /// Why it is so.
    pub why: Option<String>,
}

fn one() -> u32 {
    1
}

fn auto() -> Mode {
    Mode::Auto
}

/// Whose text a signature is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TextOf {
    /// Stderr and log of a Codex session.
    Codex,
    /// The log of another proxy.
    Log,
}

/// One row of `signatures.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Its name.
    pub id: String,
    /// Whose text it is for.
    #[serde(rename = "in")]
    pub text_of: TextOf,
    /// What the line contains.
    pub find: String,
    /// What it becomes.
    pub sees: Observation,
    /// Its figure.
    pub value: Option<u64>,
    /// Whether the first number after the text found is the figure.
    #[serde(default)]
    pub number: bool,
    /// Circumstances.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Lines that fit.
    pub examples: Vec<String>,
    /// Lines that do not.
    #[serde(default)]
    pub not: Vec<String>,
    /// Where the text comes from.
    pub source: String,
}

impl Signature {
    /// Whether `line` has what it looks for, and the figure it found.
    pub fn find(&self, line: &str) -> Option<Option<u64>> {
        let line = &line[..line.floor_char_boundary(LINE_BYTES_MAX)];
        let (pattern, is_tied) = match self.find.strip_prefix('^') {
            Some(pattern) => (pattern, true),
            None => (self.find.as_str(), false),
        };
        let mut rest = line;
        for (index, part) in pattern.split('*').enumerate() {
            let at = rest.find(part)?;
            if index == 0 && is_tied && at != 0 {
                return None;
            }
            rest = &rest[at + part.len()..];
        }
        if !self.number {
            return Some(self.value);
        }
        let digits = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        Some(digits[..end].parse().ok().or(self.value))
    }
}

/// One row of `patterns.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatternRow {
    /// The fingerprint.
    pub id: String,
    /// The faults it was seen with.
    pub faults: Vec<Fault>,
    /// What helps.
    pub fix: Action,
    /// Where it is known from.
    pub source: String,
    /// Times it helped.
    pub success_count: u32,
    /// Times it did not.
    pub fail_count: u32,
}

/// One row of `prices.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Model id, or its beginning and `*`.
    pub id: String,
    /// Dollars for a million tokens of prompt.
    pub input_usd_per_mtok: f64,
    /// Dollars for a million tokens of answer.
    pub output_usd_per_mtok: f64,
    /// What it is like for diagnosis.
    pub advice: Option<String>,
    /// Where the price comes from.
    pub source: String,
}

/// The tables in force.
#[derive(Clone, Debug, PartialEq)]
pub struct IncidentTables {
    /// Rows of `faults.toml`, one for each fault.
    pub faults: Vec<FaultRow>,
    /// Rows of `rules.toml`, in the order in which they are tried.
    pub rules: Vec<Rule>,
    /// Rows of `signatures.toml`, in the order in which they are tried.
    pub signatures: Vec<Signature>,
    /// Rows of `patterns.toml`.
    pub patterns: Vec<PatternRow>,
    /// Rows of `prices.toml`.
    pub prices: Vec<Price>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultsFile {
    #[serde(default)]
    fault: Vec<FaultRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesFile {
    #[serde(default)]
    rule: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignaturesFile {
    #[serde(default)]
    signature: Vec<Signature>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PatternsFile {
    #[serde(default)]
    pattern: Vec<PatternRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PricesFile {
    #[serde(default)]
    price: Vec<Price>,
}

/// Something wrong in a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{table}.toml: `{row}`: {message}")]
pub struct TableProblem {
    /// Which table.
    pub table: &'static str,
    /// The id of the row.
    pub row: String,
    /// What is wrong.
    pub message: String,
}

impl IncidentTables {
    /// The embedded tables alone.
    pub fn embedded() -> Self {
        const LOADED: &str = "the embedded table, loaded by a test";
        let mut tables = Self {
            faults: toml::from_str::<FaultsFile>(FAULTS).expect(LOADED).fault,
            rules: toml::from_str::<RulesFile>(RULES).expect(LOADED).rule,
            signatures: toml::from_str::<SignaturesFile>(SIGNATURES).expect(LOADED).signature,
            patterns: toml::from_str::<PatternsFile>(PATTERNS).expect(LOADED).pattern,
            prices: toml::from_str::<PricesFile>(PRICES).expect(LOADED).price,
        };
        tables.faults.sort_by_key(|row| row.id);
        tables
    }

    /// The embedded tables with the person's overrides in `config_folder`.
    ///
    /// A file that does not parse is left out whole, and the error says where it is wrong. Rows that parse and make no
    /// sense are found by [`Self::check`].
    pub fn load_from(config_folder: &Path) -> (Self, Vec<SettingsError>) {
        let mut tables = Self::embedded();
        let mut problems = Vec::new();
        // One line a table: the file, its rows, and by what a row is known.
        macro_rules! take {
            ($file:ident, $name:literal, $field:ident, $rows:ident, $id:expr) => {
                match load_override::<$file>(config_folder, $name) {
                    Ok(file) => merge(&mut tables.$rows, file.map_or_else(Vec::new, |file| file.$field), $id),
                    Err(problem) => problems.push(problem),
                }
            };
        }
        take!(FaultsFile, "faults", fault, faults, |row| row.id);
        take!(RulesFile, "rules", rule, rules, |row| row.id.clone());
        take!(SignaturesFile, "signatures", signature, signatures, |row| row.id.clone());
        // A fingerprint may have several fixes: what the person says about it takes the place of all that is embedded.
        match load_override::<PatternsFile>(config_folder, "patterns") {
            Ok(file) => {
                let own = file.map_or_else(Vec::new, |file| file.pattern);
                tables.patterns.retain(|row| !own.iter().any(|mine| mine.id == row.id));
                tables.patterns.extend(own);
            }
            Err(problem) => problems.push(problem),
        }
        take!(PricesFile, "prices", price, prices, |row| row.id.clone());
        (tables, problems)
    }

    /// The same, where nothing is wrong with any of them.
    ///
    /// # Errors
    /// The first thing that is wrong: a file that does not parse, with its line, or a row that makes no sense.
    pub fn load_sound(config_folder: &Path) -> Result<Self, Problem> {
        let (tables, problems) = Self::load_from(config_folder);
        let check = || "`codexctl rules check` shows all that is wrong".to_owned();
        if let Some(error) = problems.first() {
            return Err(Problem { message: report::chain(error), hint: error.hint().or_else(|| Some(check())) });
        }
        match tables.check().first() {
            Some(problem) => Err(Problem { message: problem.to_string(), hint: Some(check()) }),
            None => Ok(tables),
        }
    }

    /// The rules of a file that is to be tried out, over the embedded ones; the other tables are the embedded ones.
    ///
    /// # Errors
    /// [`SettingsError::Invalid`] with the line to fix.
    pub fn with_rules(path: &Path, bytes: &[u8]) -> Result<Self, SettingsError> {
        let file: RulesFile = crate::settings::parse_toml(path, bytes)?;
        let mut tables = Self::embedded();
        merge(&mut tables.rules, file.rule, |row| row.id.clone());
        Ok(tables)
    }

    /// The row of a fault; there is one for each.
    pub fn fault(&self, id: Fault) -> &FaultRow {
        self.faults.iter().find(|row| row.id == id).expect("a row for each fault: overrides replace, none removes")
    }

    /// The fault that `what` means.
    pub fn fault_of(&self, what: Observation) -> Option<&FaultRow> {
        self.faults.iter().find(|row| row.signs.contains(&what))
    }

    /// What `rule` counts.
    pub fn counted<'t>(&'t self, rule: &'t Rule) -> &'t [Observation] {
        match rule.fault {
            Some(fault) if rule.on.is_empty() => &self.fault(fault).signs,
            _ => &rule.on,
        }
    }

    /// The first signature for that kind of text which fits `line`, with the figure it found.
    pub fn signature(&self, text_of: TextOf, line: &str) -> Option<(&Signature, Option<u64>)> {
        let of_kind = self.signatures.iter().filter(|row| row.text_of == text_of);
        of_kind.into_iter().find_map(|row| row.find(line).map(|value| (row, value)))
    }

    /// What a question to `model` costs.
    pub fn price(&self, model: &str) -> Option<&Price> {
        let model = model.to_ascii_lowercase();
        let last = model.rsplit_once('/').map_or(model.as_str(), |(_, last)| last);
        let fits = |price: &&Price| {
            let id = price.id.to_ascii_lowercase();
            match id.strip_suffix('*') {
                Some(stem) => model.starts_with(stem) || last.starts_with(stem),
                None => model == id || last == id,
            }
        };
        self.prices
            .iter()
            .filter(fits)
            .max_by_key(|price| (price.id.trim_end_matches('*').len(), !price.id.ends_with('*')))
    }

    /// Everything that is wrong with them.
    pub fn check(&self) -> Vec<TableProblem> {
        let mut problems = Vec::new();
        self.check_faults(&mut problems);
        self.check_rules(&mut problems);
        self.check_signatures(&mut problems);
        self.check_patterns(&mut problems);
        for price in &self.prices {
            for usd in [price.input_usd_per_mtok, price.output_usd_per_mtok] {
                if !(usd.is_finite() && usd >= 0.0) {
                    problems.push(problem("prices", &price.id, format!("`{usd}` is no price")));
                }
            }
        }
        problems
    }

    fn check_faults(&self, problems: &mut Vec<TableProblem>) {
        let mut mut_problem =
            |row: &FaultRow, message: String| problems.push(problem("faults", row.id.name(), message));
        let mut of_sign: BTreeMap<Observation, Fault> = BTreeMap::new();
        for row in &self.faults {
            if !is_tag(&row.category) {
                mut_problem(
                    row,
                    format!("the category `{}` is not made of lower-case letters, digits and `_`", row.category),
                );
            }
            if row.signs.is_empty() || row.success.is_empty() {
                mut_problem(row, "it needs signs and a success".to_owned());
            }
            if row.within_s == 0 {
                mut_problem(row, "`within_s` must be at least 1".to_owned());
            }
            for sign in &row.signs {
                if sign.is_good() {
                    mut_problem(row, format!("`{sign}` shows that something works"));
                }
                if let Some(other) = of_sign.insert(*sign, row.id).filter(|other| *other != row.id) {
                    mut_problem(row, format!("`{sign}` is a sign of {other} already"));
                }
            }
            for success in &row.success {
                if !success.is_good() && !success.is_sample() {
                    mut_problem(row, format!("`{success}` shows no success"));
                }
            }
            for number in &row.observed_as {
                if !number.strip_prefix('F').and_then(|n| n.parse().ok()).is_some_and(|n: u8| (1..=11).contains(&n)) {
                    mut_problem(row, format!("`{number}` is none of F1 to F11"));
                }
            }
        }
    }

    fn check_rules(&self, problems: &mut Vec<TableProblem>) {
        let mut seen = BTreeSet::new();
        // What is taken already by an unconditional rule that acts at the first signal.
        let mut taken: BTreeMap<Observation, &str> = BTreeMap::new();
        for rule in &self.rules {
            let mut report = |message: String| problems.push(problem("rules", &rule.id, message));
            if rule.id.is_empty() || !seen.insert(&rule.id) {
                report("the id is empty or stands twice".to_owned());
            }
            if rule.count == 0 || rule.count > COUNT_MAX {
                report(format!("`count` must be 1 to {COUNT_MAX}"));
            }
            if rule.actions.is_empty() || rule.actions.len() > ACTIONS_MAX {
                report(format!("`do` must name 1 to {ACTIONS_MAX} actions"));
            }
            if let [first, then] = rule.actions[..] {
                let actors = (first.actor(), then.actor());
                if matches!(actors, (Actor::Person | Actor::Nobody, _) | (_, Actor::Nobody)) {
                    report("`do`: `ignore` and `diagnose` stand alone, and what tells a person stands last".to_owned());
                } else if matches!(actors, (Actor::Worker, Actor::Person)) {
                    report(
                        "`do`: a person is told after what the supervisor does, not after what a worker does"
                            .to_owned(),
                    );
                }
            }
            if rule.at_once && rule.actions != [Action::RestartProxy] {
                report("`at_once` is for `restart_proxy` alone".to_owned());
            }
            let counted = self.counted(rule);
            if counted.is_empty() {
                report("it counts nothing: name a `fault`, or observations in `on`".to_owned());
            }
            for what in counted {
                let fault = self.fault_of(*what).map(|row| row.id);
                if what.is_good() {
                    report(format!("`{what}` shows that something works"));
                } else if fault != rule.fault {
                    let is = fault.map_or("of no fault".to_owned(), |fault| format!("of {fault}"));
                    report(format!("`{what}` is a sign {is}"));
                }
                if let Some(earlier) = taken.get(what) {
                    report(format!("it never acts on `{what}`: `{earlier}` stands before it and takes every one"));
                }
                let takes_all =
                    rule.count == 1 && rule.guard == Guard::None && rule.value_min.is_none() && rule.mode != Mode::Off;
                if takes_all {
                    taken.entry(*what).or_insert(&rule.id);
                }
            }
        }
    }

    fn check_signatures(&self, problems: &mut Vec<TableProblem>) {
        let mut seen = BTreeSet::new();
        for row in &self.signatures {
            let mut report = |message: String| problems.push(problem("signatures", &row.id, message));
            if !seen.insert(&row.id) {
                report("the id stands twice".to_owned());
            }
            if row.find.split('*').any(|part| part.trim_start_matches('^').is_empty()) {
                report("`find` has an empty part".to_owned());
            }
            if row.examples.is_empty() {
                report("it needs an example".to_owned());
            }
            if row.tags.len() > TAGS_MAX || !row.tags.iter().all(|tag| is_tag(tag)) {
                report(format!("at most {TAGS_MAX} tags of lower-case letters, digits and `_`"));
            }
            for line in &row.examples {
                match self.signature(row.text_of, line) {
                    Some((first, _)) if first.id == row.id => {}
                    Some((first, _)) => report(format!("its example {line:?} is taken by `{}`", first.id)),
                    None => report(format!("its example {line:?} does not fit")),
                }
            }
            for line in &row.not {
                if row.find(line).is_some() {
                    report(format!("it must not fit {line:?}, and does"));
                }
            }
        }
    }

    fn check_patterns(&self, problems: &mut Vec<TableProblem>) {
        let mut seen = BTreeSet::new();
        for row in &self.patterns {
            let mut report = |message: String| problems.push(problem("patterns", &row.id, message));
            if !seen.insert((&row.id, row.fix)) {
                report(format!("`{}` stands twice for it", row.fix));
            }
            // What failed, and the circumstances.
            if !row.id.splitn(2, '@').all(|part| part.split('+').all(is_tag)) {
                report("the id is not tags joined by `+`, with at most one `@` before the circumstances".to_owned());
            }
            if !matches!(row.fix.actor(), Actor::Supervisor | Actor::Worker) && row.fix != Action::Ignore {
                report(format!("`{}` mends nothing", row.fix));
            }
        }
    }
}

fn problem(table: &'static str, row: &str, message: String) -> TableProblem {
    TableProblem { table, row: row.to_owned(), message }
}

/// Whether `text` may be part of a fingerprint.
pub fn is_tag(text: &str) -> bool {
    (1..=TAG_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_tables_are_sound() {
        let tables = IncidentTables::embedded();
        assert_eq!(tables.check(), []);
        let ids: Vec<Fault> = tables.faults.iter().map(|row| row.id).collect();
        assert_eq!(ids, Fault::ALL, "a row for each fault");
        let observed: BTreeSet<&str> =
            tables.faults.iter().flat_map(|row| &row.observed_as).map(String::as_str).collect();
        assert_eq!(observed.len(), 11, "F1 to F11 are all somewhere: {observed:?}");
    }

    #[test]
    fn every_fault_has_a_rule_and_every_sign_is_counted() {
        let tables = IncidentTables::embedded();
        let counted: BTreeSet<Observation> =
            tables.rules.iter().flat_map(|rule| tables.counted(rule)).copied().collect();
        for row in &tables.faults {
            assert!(tables.rules.iter().any(|rule| rule.fault == Some(row.id)), "{} has no rule", row.id);
            for sign in &row.signs {
                assert!(counted.contains(sign), "nobody counts `{sign}`");
            }
        }
    }

    #[test]
    fn the_first_seventeen_rules_keep_name_action_and_cooldown() {
        use Action as A;
        let tables = IncidentTables::embedded();
        for (id, actions, cooldown_s) in [
            ("proxy_health_fail", vec![A::RestartProxy], 30),
            ("proxy_port_conflict", vec![A::KillStaleProcesses, A::RestartProxy], 60),
            ("proxy_memory_over_1gb", vec![A::RestartProxy], 120),
            ("upstream_429", vec![A::WaitRetryAfter], 0),
            ("upstream_502_503", vec![A::RetryWithBackoff], 30),
            ("upstream_500_repeat_3x", vec![A::SwitchProvider], 60),
            ("upstream_timeout", vec![A::RetryWithBackoff, A::IncreaseTimeout], 30),
            ("upstream_401_403", vec![A::AlertUserBadKey], 0),
            ("stream_broken_pipe", vec![A::RestartProxy], 30),
            ("stream_reset", vec![A::RestartProxy], 30),
            ("stream_idle_300s", vec![A::RestartProxy], 60),
            ("parsed_tool_calls_0_x3", vec![A::ClearSchemaCache], 300),
            ("sanitizer_suspicious_5x", vec![A::AlertUserModelIssue], 0),
            ("stuck_recovery_x5", vec![A::SuggestSwitchModel], 0),
            ("codex_process_dead", vec![A::AlertUserRestart], 0),
            ("codex_memory_over_4gb", vec![A::AlertUserMemory], 0),
            ("schema_content_type_array", vec![A::DeleteProviderCaps], 0),
        ] {
            let rule = tables.rules.iter().find(|rule| rule.id == id).unwrap_or_else(|| panic!("no rule `{id}`"));
            assert_eq!((&rule.actions, rule.cooldown_s), (&actions, cooldown_s), "{id}");
        }
        assert!(tables.rules.len() > 30);
        // What may do harm when it is taken to the letter is guarded.
        let guard = |id: &str| tables.rules.iter().find(|rule| rule.id == id).map(|rule| rule.guard);
        assert_eq!(guard("stream_broken_pipe"), Some(Guard::NoSuccess));
        assert_eq!(guard("stream_reset"), Some(Guard::WorkerUnhealthy));
        assert_eq!(guard("codex_stream_disconnected"), Some(Guard::WorkerUnhealthy));
        assert_eq!(guard("stream_idle_300s"), Some(Guard::NoBytes));
    }

    #[test]
    fn the_eighteen_signals_lead_to_their_faults() {
        let tables = IncidentTables::embedded();
        for (line, fault) in [
            ("x parsed_tool_calls=0", Fault::C1),
            ("[STUCK-RECOVERY] y", Fault::C3),
            ("suspicious cmd", Fault::C4),
            ("empty cmd recovered", Fault::C6),
            ("HTTP 429", Fault::B1),
            ("HTTP 500", Fault::B2),
            ("HTTP 401", Fault::B3),
            ("HTTP 403", Fault::B4),
            ("Connection refused", Fault::A1),
            ("Address already in use", Fault::A2),
            ("Broken pipe", Fault::B7),
            ("Connection reset", Fault::B6),
            ("timed out", Fault::B5),
            ("SELF-REVIVE CRASH #1", Fault::A5),
            ("stream error", Fault::B6),
            ("HTTP 502", Fault::B2),
            ("HTTP 503", Fault::B2),
            (r#""content_type": "array""#, Fault::E1),
        ] {
            let (signature, _) = tables.signature(TextOf::Log, line).unwrap_or_else(|| panic!("{line}"));
            assert_eq!(tables.fault_of(signature.sees).map(|row| row.id), Some(fault), "{line}");
        }
        assert_eq!(tables.signature(TextOf::Codex, "HTTP 429"), None, "not in Codex's text: it shows what tools print");
        let (_, value) = tables.signature(TextOf::Codex, "ERROR: Reconnecting... 3/5").unwrap();
        assert_eq!(value, Some(3));
    }

    #[test]
    fn what_makes_no_sense_is_found() {
        let path = Path::new("rules.toml");
        for (row, message) in [
            ("fault = 'B1'\ndo = ['wait_retry_after']\ncount = 0", "`count` must be 1 to 100"),
            ("fault = 'B1'\ndo = []", "`do` must name 1 to 2 actions"),
            ("fault = 'B1'\ndo = ['ignore', 'alert_user']", "stand alone"),
            ("fault = 'B1'\ndo = ['alert_user', 'refresh_token']", "stands last"),
            ("fault = 'B1'\ndo = ['wait_retry_after', 'alert_user']", "after what the supervisor does"),
            ("fault = 'B1'\ndo = ['switch_provider']\nat_once = true", "`at_once` is for `restart_proxy` alone"),
            ("do = ['ignore']", "it counts nothing"),
            ("fault = 'B1'\non = ['probe-refused']\ndo = ['ignore']", "`probe-refused` is a sign of A1"),
            ("on = ['probe-good']\ndo = ['ignore']", "shows that something works"),
            ("fault = 'B1'\ndo = ['ignore']", "`upstream_429` stands before it"),
        ] {
            let text = format!("[[rule]]\nid = 'mine'\n{row}\n");
            let tables = IncidentTables::with_rules(path, text.as_bytes()).unwrap();
            let found: Vec<String> = tables.check().iter().map(ToString::to_string).collect();
            assert!(found.iter().any(|problem| problem.contains(message)), "{row}: {found:?}");
        }
        let error =
            IncidentTables::with_rules(path, b"[[rule]]\nid = 'x'\nfault = 'B1'\ndo = ['rm -rf']\n").unwrap_err();
        assert!(error.to_string().contains("rules.toml:4:7: unknown variant `rm -rf`"), "{error}");
    }

    #[test]
    fn the_persons_rows_replace_at_their_place() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("rules.toml"),
            "[[rule]]\nid = 'upstream_429'\nfault = 'B1'\ndo = ['wait_retry_after']\nmode = 'observe'\n",
        )
        .unwrap();
        std::fs::write(folder.path().join("faults.toml"), "[[fault]]\nid = 'Z9'\n").unwrap();
        let (tables, problems) = IncidentTables::load_from(folder.path());
        assert_eq!(problems.len(), 1, "{problems:?}");
        let place = |tables: &IncidentTables| tables.rules.iter().position(|rule| rule.id == "upstream_429").unwrap();
        assert_eq!(place(&tables), place(&IncidentTables::embedded()));
        assert_eq!(tables.rules[place(&tables)].mode, Mode::Observe);
        assert_eq!(tables.faults, IncidentTables::embedded().faults);
    }

    #[test]
    fn the_persons_patterns_take_the_place_of_all_with_the_same_id() {
        let folder = tempfile::tempdir().unwrap();
        let row = |id: &str, fix: &str| {
            format!(
                "[[pattern]]\nid = '{id}'\nfaults = ['B2']\nfix = '{fix}'\nsource = 'me'\nsuccess_count = 9\nfail_count = 0\n"
            )
        };
        let load = |text: &str| {
            std::fs::write(folder.path().join("patterns.toml"), text).unwrap();
            IncidentTables::load_from(folder.path()).0
        };
        let own = [
            row("server_error+repeat_3x", "retry_now"),
            row("server_error+repeat_3x", "restart_proxy"),
            row("server_error@chat_completions+http_502", "retry_now"),
        ];
        let tables = load(&own.concat());
        assert_eq!(tables.check(), []);
        let fixes = |id: &str| {
            let of_id = tables.patterns.iter().filter(|row| row.id == id);
            of_id.map(|row| row.fix).collect::<Vec<_>>()
        };
        assert_eq!(fixes("server_error+repeat_3x"), [Action::RetryNow, Action::RestartProxy]);
        assert_eq!(fixes("parser_empty+explore_agent"), [Action::SynthExploreFromUrls], "the others are as they were");

        for (text, message) in [
            (own[0].repeat(2), "`retry_now` stands twice for it"),
            (row("a@b@c", "retry_now"), "with at most one `@`"),
            (row("a@", "retry_now"), "tags joined by `+`"),
        ] {
            let found: Vec<String> = load(&text).check().iter().map(ToString::to_string).collect();
            assert!(found.len() == 1 && found[0].contains(message), "{text}: {found:?}");
        }
    }

    #[test]
    fn the_longest_price_wins() {
        let tables = IncidentTables::embedded();
        for (model, id) in [("Qwen/Qwen3-32B", "qwen3-32b*"), ("gpt-4o-mini-2024", "gpt-4o-mini*"), ("unheard-of", "*")]
        {
            assert_eq!(tables.price(model).map(|price| price.id.as_str()), Some(id), "{model}");
        }
    }
}
