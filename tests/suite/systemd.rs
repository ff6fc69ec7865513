//! Under a real systemd, in a sandbox of its own: see `scripts/systemd-sandbox` and `scripts/systemd-test.sh`.

use std::process::Command;

use e2e::codex;
use e2e::home::{binaries, workspace};

#[test]
fn the_service_is_ready_by_notify_and_stops_clean() {
    let script = |name: &str| workspace().join("scripts").join(name);
    let check = Command::new(script("systemd-sandbox")).arg("--check").output().expect("the script can be run");
    if !check.status.success() {
        let reason = format!("{}{}", String::from_utf8_lossy(&check.stdout), String::from_utf8_lossy(&check.stderr));
        assert!(std::env::var_os("CI").is_none(), "the systemd test must run in CI: {reason}");
        eprintln!("skipped: no systemd sandbox: {reason}");
        return;
    }
    let mut command = Command::new(script("systemd-test.sh"));
    command.arg(binaries()).arg(codex::program()).env("SYSTEMD_SANDBOX_JOURNAL", "1");
    let output = command.output().expect("the script can be run");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\nstdout: {stdout}\nstderr: {stderr}", output.status);
    println!("{stdout}");
}
