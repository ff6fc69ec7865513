use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use crate::home::{Home, id};

fn append(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

#[test]
fn the_last_lines_are_shown_without_a_supervisor() {
    let home = Home::new();
    let log = home.paths.supervisor_log();
    append(&log, "one\ntwo\x1b[2J\nthree\nbegun");
    assert_eq!(home.run(&["logs"]).succeeded(), "one\ntwo\u{fffd}[2J\nthree\nbegun\n");
    assert_eq!(home.run(&["logs", "-n", "2"]).succeeded(), "three\nbegun\n");
    assert_eq!(home.run(&["logs", "-n", "0"]).succeeded(), "");
    append(&home.paths.worker_log(&id("zai")), "worker\n");
    assert_eq!(home.run(&["logs", "zai"]).succeeded(), "worker\n");
    assert_eq!(home.run(&["logs", "zai", "--json"]).succeeded(), "{\"line\":\"worker\"}\n");
}

#[test]
fn a_missing_log_says_why() {
    let home = Home::new();
    let message = format!("there is no log `{}` yet", home.paths.supervisor_log().display());
    home.run(&["logs"]).failed(1, &message, Some("it is written from the first start on: `codexctl start`"));
    home.write_settings("[[endpoint]]\nid = \"zai\"\npreset = \"zai\"\n");
    home.run(&["logs", "zia"]).failed(1, "there is no endpoint `zia`", Some("did you mean `zai`?"));
    home.run(&["logs", "zia", "-f"]).failed(1, "there is no endpoint `zia`", Some("did you mean `zai`?"));
}

#[test]
fn a_log_is_followed_across_its_changes_of_file() {
    let home = Home::new();
    let log = home.paths.supervisor_log();
    append(&log, "old\nlast\n");
    let follower = home.spawn(&["logs", "-f", "-n", "1"]);
    assert_eq!(follower.line(), "last");
    append(&log, "next\nbeg");
    assert_eq!(follower.line(), "next");
    append(&log, "un\n");
    assert_eq!(follower.line(), "begun");
    // Put aside and made anew, with a last line in the old file.
    append(&log, "final\n");
    fs::rename(&log, log.with_extension("log.1")).unwrap();
    append(&log, "fresh\n");
    assert_eq!(follower.line(), "final");
    assert_eq!(follower.line(), "fresh");
    // Emptied in place.
    fs::write(&log, "").unwrap();
    append(&log, "a\n");
    assert_eq!(follower.line(), "a");
}

#[test]
fn a_log_that_does_not_exist_yet_can_be_followed() {
    let home = Home::new();
    let follower = home.spawn(&["logs", "-f", "--json"]);
    append(&home.paths.supervisor_log(), "first\n");
    assert_eq!(follower.line(), "{\"line\":\"first\"}");
}
