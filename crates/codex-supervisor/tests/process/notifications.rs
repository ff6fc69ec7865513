//! Notifications on a desktop: a session bus of the test's own (`dbus-daemon`), and a program on it that takes them.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};

use futures_util::StreamExt;
use serde_json::{Value, json};
use zbus::{MessageStream, OwnedVariant};

use crate::endpoint;
use crate::home::{Home, PATIENCE, Supervisor, wait_for};

const NOTIFICATIONS: &str = "org.freedesktop.Notifications";

/// A session bus that ends with the test.
struct Bus {
    daemon: Child,
    socket: PathBuf,
}

impl Bus {
    /// `None` where there is no `dbus-daemon`: the test says so and proves nothing.
    fn start(folder: &Path) -> Option<Self> {
        let socket = folder.join("bus");
        let mut command = Command::new("dbus-daemon");
        command.args(["--session", "--nofork", "--nopidfile", "--print-address=1"]);
        command.arg(format!("--address=unix:path={}", socket.display()));
        command.env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut daemon = match command.spawn() {
            Ok(daemon) => daemon,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("skipped: `dbus-daemon` is not installed (apt-get install dbus-daemon)");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let bus = Self { daemon, socket };
        assert!(address.starts_with("unix:path="), "the bus serves: {address:?}");
        Some(bus)
    }

    fn address(&self) -> String {
        format!("unix:path={}", self.socket.display())
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// What the desktop was told to show.
#[derive(Debug)]
struct Shown {
    program: String,
    title: String,
    body: String,
    urgency: u8,
    for_ms: i32,
}

/// A desktop that takes notifications; with `answers` false, one that hangs.
fn desktop(bus: &Bus, answers: bool) -> Receiver<Shown> {
    let (shown_tx, shown) = mpsc::channel();
    let (ready_tx, ready) = mpsc::channel();
    let socket = bus.socket.clone();
    // Ends with the bus.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(take(&socket, answers, &ready_tx, &shown_tx));
    });
    ready.recv_timeout(PATIENCE).expect("the desktop is there");
    shown
}

async fn take(socket: &Path, answers: bool, ready: &Sender<()>, shown: &Sender<Shown>) {
    type Notify = (String, u32, String, String, String, Vec<String>, HashMap<String, OwnedVariant>, i32);
    let stream = tokio::net::UnixStream::connect(socket).await.unwrap().into_std().unwrap();
    let connection = zbus::connection::Builder::unix_stream(stream).build().await.unwrap();
    let mut messages = MessageStream::from(&connection);
    connection.request_name(NOTIFICATIONS).await.unwrap();
    ready.send(()).unwrap();
    while let Some(Ok(message)) = messages.next().await {
        let header = message.header();
        if header.member().is_none_or(|member| member.as_str() != "Notify") {
            continue;
        }
        assert_eq!(header.interface().map(zbus::names::InterfaceName::as_str), Some(NOTIFICATIONS));
        assert_eq!(header.path().map(zbus::ObjectPath::as_str), Some("/org/freedesktop/Notifications"));
        let (program, _, _, title, body, actions, mut hints, for_ms): Notify = message.body().deserialize().unwrap();
        assert!(actions.is_empty(), "nothing to press: {actions:?}");
        let urgency = u8::try_from(hints.remove("urgency").expect("an urgency")).unwrap();
        let _ = shown.send(Shown { program, title, body, urgency, for_ms }); // fails only when the test is over
        if answers {
            connection.reply(&header, &1_u32).await.unwrap();
        }
    }
}

fn start<'h>(home: &'h Home, bus: &Bus) -> Supervisor<'h> {
    let mut command = home.command();
    command.env("DBUS_SESSION_BUS_ADDRESS", bus.address());
    home.start_with(command)
}

fn report(supervisor: &Supervisor<'_>, what: &str, detail: &str, times: usize) {
    for _ in 0..times {
        supervisor.call("incident.report", json!({ "what": what, "endpoint": "a", "detail": detail }));
    }
}

fn is_told(supervisor: &Supervisor<'_>, fault: &str) {
    wait_for("the person to be told", || {
        let incidents = supervisor.call("incident.list", json!({ "whole": true }));
        incidents.as_array().unwrap().iter().any(|one| one["fault"] == fault && one["state"] == "alerted").then_some(())
    });
}

#[test]
fn the_desktop_shows_what_matters_and_as_much_as_the_person_wants() {
    let home = Home::new(&endpoint("a", ""));
    let Some(bus) = Bus::start(home.path()) else { return };
    let shown = desktop(&bus, true);
    let supervisor = start(&home, &bus);

    // `important_only` holds by default: the first of the two is not shown.
    report(&supervisor, "explore-agent-bare", "", 3);
    is_told(&supervisor, "C1");
    report(&supervisor, "upstream-unauthorized", "<b>no</b> & key sk-proj-abcdefghijklmnopqrstuvwx", 1);
    let first = shown.recv_timeout(PATIENCE).expect("a notification");
    assert_eq!((first.program.as_str(), first.title.as_str(), first.urgency), ("codex-supervisor", "Codex", 2));
    assert!(first.for_ms > 0, "{first:?}");
    assert!(first.body.contains("`a`") && first.body.contains("&lt;b&gt;no&lt;/b&gt; &amp;"), "{first:?}");
    assert!(first.body.contains("codexctl login a"), "what to do: {first:?}");
    assert!(!first.body.contains("abcdefgh"), "{first:?}");

    // Nothing of another one, and all of the next.
    supervisor.call("monitor.set", json!({ "key": "notification_level", "value": "off" }));
    report(&supervisor, "upstream-tls-failed", "", 1);
    is_told(&supervisor, "A6");
    supervisor.call("monitor.set", json!({ "key": "notification_level", "value": "all" }));
    report(&supervisor, "command-empty", "", 3);
    let second = shown.recv_timeout(PATIENCE).expect("a notification");
    is_told(&supervisor, "C6");
    assert!(second.urgency == 1 && !second.body.contains("certificate"), "{second:?}");
    supervisor.stop();
    assert!(shown.try_recv().is_err(), "nothing is shown twice");
}

#[test]
fn a_desktop_that_hangs_or_is_gone_holds_nothing_up() {
    let home = Home::new(&endpoint("a", ""));
    let Some(bus) = Bus::start(home.path()) else { return };
    let shown = desktop(&bus, false);
    let supervisor = start(&home, &bus);
    report(&supervisor, "upstream-unauthorized", "", 1);
    shown.recv_timeout(PATIENCE).expect("a notification");
    drop(bus);
    report(&supervisor, "upstream-tls-failed", "", 1);
    is_told(&supervisor, "A6");
    let status = supervisor.call("daemon.status", Value::Null);
    assert_eq!(status["endpoints"].as_array().map(Vec::len), Some(1), "{status:#}");
    supervisor.stop();
}
