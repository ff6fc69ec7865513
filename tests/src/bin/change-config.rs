//! Changes a `config.toml` of Codex as the product does, one step in one process, for tests that kill it, fail its
//! system calls, or write at the same time.
//!
//! `change-config hold|release|recover|suspend`: what [`codex_control::codex_config`] does, in the home of the
//! environment. `change-config unsafe`: the same change as `hold`, made as programs make it that do not care: a test that
//! does not catch this one catches nothing. `change-config foreign WRITES`: another program that reads the file, adds a
//! key, and writes it, by turns in place and by a rename, at least so often and until its stdin is closed; prints what
//! it did as JSON.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use codex_control::EndpointId;
use codex_control::codex_config::{CodexConfig, Holder, Redirect};
use codex_control::environment::Environment;
use codex_control::paths::Paths;
use serde_json::json;

/// Longest pause of the other program between two of its steps, in microseconds.
const PAUSE_US_MAX: u32 = 2_000;
/// Longest pause between two of its bursts: we wait until a file was left alone for a moment.
const LONG_PAUSE_US_MAX: u32 = 80_000;
/// Writes of a burst.
const BURST: usize = 6;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let paths = Paths::from_environment(&Environment::from_process())?;
    let config = CodexConfig::new(&paths);
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["hold"] => drop(config.hold(holder()?)?),
        ["release"] => drop(config.release("test")?),
        ["recover"] => drop(config.resume(|| true)?),
        ["suspend"] => drop(config.suspend()?),
        ["unsafe"] => careless(&config)?,
        ["foreign", writes] => foreign(config.path(), writes.parse()?)?,
        _ => bail!("usage: change-config hold|release|recover|suspend|unsafe|foreign WRITES"),
    }
    Ok(())
}

/// A holder that lasts until it is released.
fn holder() -> anyhow::Result<Holder> {
    let endpoint: EndpointId = "test".parse()?;
    let address = ([127, 0, 0, 1], 41017).into();
    let redirect = Redirect {
        endpoint: &endpoint,
        name: "Test",
        address,
        protocol: None,
        model: Some("m"),
        codexctl: "/bin/false",
    };
    Ok(Holder {
        id: "test".to_owned(),
        keys: redirect.keys(),
        endpoint: Some(endpoint),
        processes: vec![],
        since_ms: 0,
    })
}

/// A backup, then the file emptied and written in place.
fn careless(config: &CodexConfig) -> anyhow::Result<()> {
    let after = config.preview(&holder()?.keys)?.after.context("there is something to write")?;
    fs::copy(config.path(), config.path().with_extension("toml.bak"))?;
    let (first, second) = after.as_bytes().split_at(after.len() / 2);
    let mut file = fs::File::create(config.path())?;
    file.write_all(first)?;
    file.write_all(second)?;
    file.sync_all()?;
    fs::remove_file(config.path().with_extension("toml.bak"))?;
    Ok(())
}

fn foreign(path: &Path, writes: usize) -> anyhow::Result<()> {
    let told = thread::spawn(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let mut written: BTreeSet<String> = BTreeSet::new();
    let mut unseen: BTreeSet<String> = BTreeSet::new();
    // How often something that it had written was newly missing from what it was shown.
    let mut n_blind: usize = 0;
    let mut n: usize = 0;
    while n < writes || !told.is_finished() {
        let text = fs::read_to_string(path).unwrap_or_default();
        // What it has written before and is not shown, it is about to overwrite: it does not know better.
        let shown: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_suffix(" = true")).collect();
        let n_unseen = unseen.len();
        unseen.extend(written.iter().filter(|key| !shown.contains(key.as_str())).cloned());
        n_blind += usize::from(unseen.len() > n_unseen);
        pause(PAUSE_US_MAX)?;
        let key = format!("foreign_{n}");
        let text = format!("{key} = true\n{text}");
        if n.is_multiple_of(2) {
            fs::write(path, text)?;
        } else {
            let temporary = path.with_extension("foreign");
            fs::write(&temporary, text)?;
            fs::rename(&temporary, path)?;
        }
        written.insert(key);
        n += 1;
        pause(if n.is_multiple_of(BURST) { LONG_PAUSE_US_MAX } else { PAUSE_US_MAX })?;
    }
    println!("{}", json!({ "written": written, "unseen": unseen, "n_blind": n_blind }));
    Ok(())
}

/// Waits for a random time: when the other writer writes is what the test is about.
fn pause(us_max: u32) -> anyhow::Result<()> {
    let mut bytes = [0; 4];
    fs::File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes))?;
    let pause_us = u32::from_ne_bytes(bytes) % us_max;
    thread::park_timeout(Duration::from_micros(pause_us.into()));
    Ok(())
}
