//! The arrows of the architecture, checked on what cargo resolves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};
use e2e::home::workspace;

fn metadata() -> Metadata {
    // Only this platform's packages: the others were never downloaded by a build.
    let rustc = Command::new("rustc").arg("-vV").output().expect("rustc can be run");
    let version = String::from_utf8_lossy(&rustc.stdout).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc names its host");
    MetadataCommand::new()
        .current_dir(workspace())
        .other_options(["--locked", "--filter-platform", host].map(str::to_owned))
        .exec()
        .expect("the workspace is sound")
}

/// Direct dependencies of `package`, by name; those of its tests only when asked for.
fn direct(package: &Package, with_tests: bool) -> BTreeSet<&str> {
    let kinds = |kind| kind != DependencyKind::Development || with_tests;
    package
        .dependencies
        .iter()
        .filter(|dependency| kinds(dependency.kind))
        .map(|dependency| dependency.name.as_str())
        .collect()
}

/// Everything that `package` is built from.
fn closure<'m>(metadata: &'m Metadata, package: &Package) -> BTreeSet<&'m str> {
    let nodes: BTreeMap<_, _> = metadata
        .resolve
        .as_ref()
        .expect("the metadata holds the graph")
        .nodes
        .iter()
        .map(|node| (&node.id, node))
        .collect();
    let mut seen: BTreeSet<&PackageId> = BTreeSet::new();
    let mut todo = vec![&package.id];
    while let Some(id) = todo.pop() {
        let built = |kind: &cargo_metadata::DepKindInfo| kind.kind != DependencyKind::Development;
        for dependency in nodes[id].deps.iter().filter(|dependency| dependency.dep_kinds.iter().any(built)) {
            if seen.insert(&dependency.pkg) {
                todo.push(&dependency.pkg);
            }
        }
    }
    metadata.packages.iter().filter(|package| seen.contains(&package.id)).map(|package| package.name.as_str()).collect()
}

fn set<'a>(names: &[&'a str]) -> BTreeSet<&'a str> {
    names.iter().copied().collect()
}

/// What each of our packages may use of ours.
const ARROWS: &[(&str, &[&str])] = &[
    ("codex-translate", &[]),
    ("codex-control", &[]),
    ("codex-incident", &["codex-control"]),
    ("codex-worker", &["codex-control", "codex-translate"]),
    ("codex-supervisor", &["codex-control", "codex-incident"]),
    ("codexctl", &["codex-control"]),
    ("e2e", &["codex-control", "codex-translate"]),
];

#[test]
fn arrows_point_down() {
    let metadata = metadata();
    let packages = metadata.workspace_packages();
    let ours: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    for package in &packages {
        let (_, allowed) = ARROWS
            .iter()
            .find(|(name, _)| package.name == *name)
            .unwrap_or_else(|| panic!("`{}` has no row", package.name));
        let used: BTreeSet<&str> = direct(package, true).intersection(&ours).copied().collect();
        assert!(used.is_subset(&set(allowed)), "`{}` uses {used:?}, may use {allowed:?}", package.name);
    }
}

#[test]
fn packages_with_one_home_stay_there() {
    let metadata = metadata();
    for (name, home) in [
        ("bincode", "codex-control"),
        ("toml_edit", "codex-control"),
        ("rusqlite", "codex-supervisor"),
        ("rustls", "codex-worker"),
        ("hyper-rustls", "codex-worker"),
        ("zbus", "codex-supervisor"),
    ] {
        for package in metadata.workspace_packages() {
            assert!(
                package.name == home || !direct(package, true).contains(name),
                "`{}` uses {name}, which only {home} may",
                package.name
            );
        }
    }
    for package in metadata.workspace_packages() {
        if package.name != "codex-worker" {
            let tls: Vec<&str> = closure(&metadata, package)
                .intersection(&set(&["rustls", "ring", "aws-lc-rs", "openssl", "native-tls"]))
                .copied()
                .collect();
            assert!(tls.is_empty(), "`{}` is built with {tls:?}: only the worker speaks TLS", package.name);
        }
    }
}

#[test]
fn deciding_stays_apart_from_doing() {
    let metadata = metadata();
    let doing =
        set(&["tokio", "hyper", "mio", "rustix", "nix", "getrandom", "socket2", "tracing-subscriber", "tempfile"]);
    for package in metadata.workspace_packages() {
        let found: Vec<&str> = match package.name.as_str() {
            "codex-translate" => closure(&metadata, package).intersection(&doing).copied().collect(),
            // It takes words and tables from a crate that also does things; which of it, the next test says.
            "codex-incident" => direct(package, false).intersection(&doing).copied().collect(),
            _ => continue,
        };
        assert!(found.is_empty(), "`{}` is built with {found:?}", package.name);
    }
}

#[test]
fn the_incident_engine_takes_only_words_and_tables() {
    let allowed = ["EndpointId", "incident", "redact", "tables::incident"];
    for (path, text) in sources("crates/codex-incident/src") {
        for (at, _) in text.match_indices("codex_control::") {
            let rest = &text[at + "codex_control::".len()..];
            let is_allowed = allowed.iter().any(|name| {
                rest.strip_prefix(name)
                    .is_some_and(|after| !after.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
            });
            let line = rest.lines().next().unwrap_or_default();
            assert!(is_allowed, "{}: codex_control::{line}", path.display());
        }
        for word in ["std::fs", "std::net", "std::env", "std::process", "std::thread", "Instant", "SystemTime"] {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
    }
}

/// The Rust sources below `folder`.
fn sources(folder: &str) -> Vec<(std::path::PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![workspace().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of ours").map_while(Result::ok) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source is text");
                found.push((path, text));
            }
        }
    }
    found
}

#[test]
fn versions_and_lints_stand_once() {
    let metadata = metadata();
    let root: toml::Table = toml::from_str(&fs::read_to_string(workspace().join("Cargo.toml")).unwrap()).unwrap();
    assert_eq!(root["workspace"]["lints"]["rust"]["unsafe_code"].as_str(), Some("forbid"));
    for package in metadata.workspace_packages() {
        let manifest: toml::Table = toml::from_str(&fs::read_to_string(&package.manifest_path).unwrap()).unwrap();
        assert_eq!(
            manifest["lints"]["workspace"].as_bool(),
            Some(true),
            "`{}` does not take the workspace's lints",
            package.name
        );
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, source) in manifest.get(kind).and_then(toml::Value::as_table).into_iter().flatten() {
                assert_eq!(
                    source.get("workspace").and_then(toml::Value::as_bool),
                    Some(true),
                    "`{}` gives {name} a version of its own",
                    package.name
                );
            }
        }
    }
}

#[test]
fn the_binary_codec_has_one_file() {
    let users: Vec<_> = sources("crates")
        .into_iter()
        .filter(|(_, text)| text.contains("bincode::"))
        .map(|(path, _)| path.strip_prefix(workspace()).unwrap().to_owned())
        .collect();
    assert_eq!(users, [std::path::Path::new("crates/codex-control/src/ipc/frame.rs")]);
}
