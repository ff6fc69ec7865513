//! Workers that end, hang, are sick or cannot be started; listeners that never close.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use codex_control::codex_config::{CodexConfig, Holder, Key};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::endpoint;
use crate::home::{Home, PATIENCE, begin, get, refused as refused_by, wait_for};

#[test]
fn it_starts_serves_and_leaves_nothing() {
    let home = Home::new(&(endpoint("a", "") + &endpoint("b", "") + &endpoint("off", "enabled = false")));
    let supervisor = home.start();
    let address = supervisor.wake("a");
    assert!(get(address, "/health").unwrap().ends_with("generation 1\n"));
    supervisor.wake("b");
    let status = supervisor.call("daemon.status", Value::Null);
    assert_eq!(status["pid"], supervisor.pid());
    let by_id: Vec<_> =
        status["endpoints"].as_array().unwrap().iter().map(|e| (e["id"].as_str(), e["state"].as_str())).collect();
    assert_eq!(by_id, [(Some("a"), Some("running")), (Some("b"), Some("running")), (Some("off"), Some("disabled"))]);
    assert!(status["endpoints"][0]["memory_bytes"].as_u64().unwrap() > 100_000);
    for folder in [home.runtime(""), home.state(""), home.settings_file().parent().unwrap().to_owned()] {
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700, "{}", folder.display());
    }
    for file in ["control.sock", "worker.sock", "registry.json", "supervisor.lock"] {
        assert_eq!(fs::metadata(home.runtime(file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }
    let worker_pid = supervisor.worker("a").identity().pid;
    let stat = fs::read_to_string(format!("/proc/{worker_pid}/stat")).unwrap();
    let group = stat.rsplit_once(") ").unwrap().1.split(' ').nth(2).unwrap();
    assert_eq!(group, worker_pid.to_string(), "a Ctrl-C meant for the supervisor does not reach it");
    assert!(fs::read_to_string(home.state("logs/a.log")).unwrap().contains("stand-in started, generation 1"));
    supervisor.stop();
    // The same address again: Codex knows it.
    let supervisor = home.start();
    assert_eq!(supervisor.wake("a"), address);
    assert_eq!(supervisor.call("daemon.stop", Value::Null), Value::Null);
    assert!(supervisor.wait().success());
    home.assert_nothing_is_left();
}

#[test]
fn a_second_supervisor_names_the_first_and_ends() {
    let home = Home::new("");
    let supervisor = home.start();
    let second = home.command().stderr(std::process::Stdio::piped()).output().unwrap();
    let message = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert_eq!(
        message,
        format!(
            "error: a supervisor is running already (pid {})\n  hint: `codexctl status` shows it, `codexctl stop` ends it\n",
            supervisor.pid()
        )
    );
    supervisor.stop();
}

#[test]
fn a_worker_killed_under_connections_refuses_none() {
    const KILLS: u32 = 4;
    let home = Home::new(&endpoint("a", ""));
    let supervisor = home.start();
    let address = supervisor.wake("a");
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let n_answered = Arc::new(AtomicU32::new(0));
            let (is_over, counter) = (is_over.clone(), n_answered.clone());
            let client = std::thread::spawn(move || {
                let mut n_cut = 0_u32;
                while !is_over.load(Ordering::Relaxed) {
                    match get(address, "/health") {
                        Ok(answer) if answer.contains(" 200 ") => {
                            counter.fetch_add(1, Ordering::Relaxed);
                        }
                        // It was being answered when its worker was killed.
                        Ok(_) => n_cut += 1,
                        Err(error) if error.kind() == ErrorKind::ConnectionReset => n_cut += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                n_cut
            });
            (client, n_answered)
        })
        .collect();
    for kill in 1..=KILLS {
        let before = supervisor.worker("a");
        assert!(before.signal(Signal::KILL).unwrap());
        let status = supervisor.wait_for_endpoint("a", "the next worker", |status| {
            status["generation"] == kill + 1 && status["state"] == "running"
        });
        assert_eq!((&status["restarts_total"], &status["last_exit"]), (&json!(kill), &json!("signal 9")));
        supervisor.wake("a");
    }
    // One that panics is told of below.
    let is_done = |client: &JoinHandle<u32>, n_answered: &AtomicU32| {
        client.is_finished() || n_answered.load(Ordering::Relaxed) > KILLS
    };
    wait_for("every client to be answered more often than workers were killed", || {
        clients.iter().all(|(client, n_answered)| is_done(client, n_answered)).then_some(())
    });
    is_over.store(true, Ordering::Relaxed);
    for (client, n_answered) in clients {
        let n_cut = client.join().expect("no connection is refused");
        assert!(n_cut <= KILLS, "{n_answered:?} answered, {n_cut} cut");
    }
    supervisor.stop();
}

#[test]
fn a_stuck_worker_is_replaced_within_two_seconds() {
    const LIMIT: Duration = Duration::from_secs(2);
    // A busy machine may be late for some of them. Who waits for too long is late for every one: each is stopped when
    // it was heard a moment ago, so that the time until it is missed is the same.
    let ids = ["a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8"];
    let home = Home::new(&(ids.map(|id| endpoint(id, "")).concat() + &endpoint("b", "")));
    let supervisor = home.start();
    supervisor.wake("b");
    let mut shortest = Duration::MAX;
    for id in ids {
        let address = supervisor.wake(id);
        let worker = supervisor.worker(id);
        assert!(get(address, "/heartbeat").unwrap().contains(" 200 "));
        let stuck_at = Instant::now();
        assert!(worker.signal(Signal::STOP).unwrap());
        assert!(get(address, "/health").unwrap().ends_with("generation 2\n"), "it waits for the next worker");
        shortest = shortest.min(stuck_at.elapsed());
        let exit = "signal 9, it stopped responding";
        supervisor.wait_for_endpoint(id, "the end of the stuck one", |status| status["last_exit"] == exit);
        assert_eq!(supervisor.endpoint("b")["generation"], 1);
        if shortest < LIMIT {
            break;
        }
    }
    assert!(shortest < LIMIT, "{shortest:?}");
    supervisor.stop();
}

#[test]
fn a_supervisor_that_was_stopped_itself_kills_nobody() {
    let home = Home::new(&endpoint("a", ""));
    let supervisor = home.start();
    supervisor.wake("a");
    supervisor.signal(Signal::STOP);
    // Longer than any silence it forgives a worker.
    let frozen_until = Instant::now() + Duration::from_secs(4);
    wait_for("the time to pass", || (Instant::now() >= frozen_until).then_some(()));
    supervisor.signal(Signal::CONT);
    supervisor.wake("a");
    wait_for("the log", || {
        fs::read_to_string(home.state("logs/supervisor.log")).unwrap().contains("we were stopped").then_some(())
    });
    assert_eq!(
        (&supervisor.endpoint("a")["generation"], &supervisor.endpoint("a")["restarts_total"]),
        (&json!(1), &json!(0))
    );
    supervisor.stop();
}

#[test]
fn a_worker_that_keeps_ending_is_restarted_ever_later_and_bothers_nobody() {
    // `c` goes on to be unwell for as long as it is looked at.
    let settings =
        "[daemon]\nhealth_failures_max = 100\n".to_owned() + &endpoint("b", "") + &endpoint("c", "name = \"sick\"");
    let home = Home::new(&settings);
    let supervisor = home.start();
    supervisor.wake("b");
    // Heard from before its first worker on, so that nothing of it is missed.
    let mut events = supervisor.connect();
    events.call("events.subscribe", Value::Null);
    home.write_settings(&(settings + &endpoint("a", "name = \"crash\"")));
    let mut told = Vec::new();
    while told.last() != Some(&json!("broken")) {
        let event = events.receive().unwrap().unwrap()["params"].take();
        match event["kind"].as_str().unwrap() {
            _ if event["endpoint"] != "a" => {}
            "endpoint.state" => told.push(event["detail"]["state"].clone()),
            "worker.ended" => told.push(event["detail"]["exit"].clone()),
            _ => {}
        }
    }
    // More than five in ten minutes: Codex is told, and the machine is left in peace.
    let exit = "exit code 3";
    assert_eq!(told, ["starting", exit, "restarting", exit, exit, exit, exit, exit, "broken"]);
    let status = supervisor.endpoint("a");
    assert_eq!((&status["restarts_total"], &status["last_exit"]), (&json!(6), &json!(exit)));
    let message = "the worker of endpoint `a` keeps ending (the last one: exit code 3); it is tried again every 30 s";
    let hint = "`codexctl logs a` tells why; `codexctl restart a` tries at once";
    assert_eq!(status["problem"], json!({ "message": message, "hint": hint }));
    let answer = get(crate::home::address(&status), "/v1/responses").unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with(&format!("codex-supervisor: {message}; {hint}")));
    let (code, said, _) = supervisor.refusal("endpoint.wake", json!({ "id": "a", "timeout_ms": 50 }));
    assert_eq!((code, said.as_str()), (4, message));
    let log = fs::read_to_string(home.state("logs/supervisor.log")).unwrap();
    assert_eq!(log.matches("restarts are slow from now on").count(), 1);
    // Other settings deserve a try at once.
    supervisor.call("endpoint.set", json!({ "id": "a", "key": "name", "value": "mended" }));
    supervisor.wake("a");
    // Whoever waits for one that is not given up is told how its last worker ended.
    let address = crate::home::address(&supervisor.wait_for_state("c", "running"));
    let _ = get(address, "/exit/3"); // cut short
    supervisor.wait_for_endpoint("c", "its end", |status| status["last_exit"] == exit);
    let (code, message, hint) = supervisor.refusal("endpoint.wake", json!({ "id": "c", "timeout_ms": 50 }));
    assert_eq!(code, 3);
    assert_eq!(message, "the endpoint `c` did not answer within 50 ms; its last worker: exit code 3");
    assert_eq!(hint, "`codexctl logs c` tells more");
    assert_eq!(supervisor.endpoint("b")["restarts_total"], 0);
    supervisor.stop();
}

#[test]
fn a_sick_worker_is_replaced() {
    let settings =
        "[daemon]\nhealth_interval_s = 1\nhealth_failures_max = 2\n".to_owned() + &endpoint("a", "name = \"sick\"");
    let home = Home::new(&settings);
    let supervisor = home.start();
    let status = supervisor.wait_for_endpoint("a", "another worker", |status| status["generation"].as_u64() >= Some(2));
    assert_eq!(status["last_exit"], "it failed its health probes: it answered `HTTP/1.1 500 Internal Server Error`");
    supervisor.stop();
}

#[test]
fn a_worker_that_finds_a_problem_makes_its_endpoint_broken() {
    let home = Home::new(&endpoint("a", "name = \"keyless\""));
    let supervisor = home.start();
    let (code, message, hint) = supervisor.refusal("endpoint.wake", json!({ "id": "a", "timeout_ms": 30_000 }));
    assert_eq!((code, message.as_str(), hint.as_str()), (4, "endpoint `a` has no key", "store one"));
    let status = supervisor.endpoint("a");
    assert_eq!((&status["state"], &status["problem"]["hint"]), (&json!("broken"), &json!("store one")));
    assert!(status["worker_pid"].is_u64(), "it answers for itself");
    // Whoever asks while that one is replaced waits for the next one.
    supervisor.call("endpoint.set", json!({ "id": "a", "key": "name", "value": "mended" }));
    supervisor.wake("a");
    assert_eq!(supervisor.endpoint("a")["state"], "running");
    supervisor.stop();
}

#[test]
fn a_port_that_is_taken_is_told_with_its_holder_and_tried_again() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let home = Home::new(&(endpoint("work", &format!("port = {port}")) + &endpoint("b", "")));
    let supervisor = home.start();
    supervisor.wake("b");
    let own_name = fs::read_to_string("/proc/self/comm").unwrap().trim().to_owned();
    let (code, message, hint) = supervisor.refusal("endpoint.wake", json!({ "id": "work", "timeout_ms": 30_000 }));
    assert_eq!(code, 4);
    assert_eq!(
        message,
        format!("endpoint `work` cannot start: port {port} is held by pid {} (`{own_name}`)", std::process::id())
    );
    assert_eq!(hint, "stop that process, or run `codexctl endpoint set work port auto`");
    assert_eq!(supervisor.endpoint("work")["address"], Value::Null);
    drop(held);
    supervisor.wait_for_state("work", "running");
    assert_eq!(supervisor.wake("work").port(), port);
    // Any other port is a way out, too.
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    supervisor.call(
        "endpoint.set",
        json!({ "id": "b", "key": "port", "value": held.local_addr().unwrap().port().to_string() }),
    );
    let status = supervisor.endpoint("b");
    assert_eq!(status["state"], "running", "what worked goes on");
    assert!(status["problem"]["message"].as_str().unwrap().contains("is held by pid"), "{status}");
    supervisor.call("endpoint.set", json!({ "id": "b", "key": "port", "value": null }));
    assert_eq!(supervisor.endpoint("b")["problem"], Value::Null);
    supervisor.stop();
}

#[test]
fn without_a_worker_program_a_plain_sentence_is_answered() {
    let home = Home::without_worker(&endpoint("a", ""));
    let supervisor = home.start();
    let status = supervisor.wait_for_state("a", "broken");
    let message = status["problem"]["message"].as_str().unwrap();
    assert!(message.starts_with("the worker program `") && message.ends_with("codex-worker` is missing"), "{message}");
    let answer = get(crate::home::address(&status), "/v1/models").unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain"), "{answer}");
    let remedy = "install codex-supervisor again; both programs belong in one folder";
    assert!(answer.ends_with(&format!("\r\n\r\ncodex-supervisor: {message}; {remedy}")), "{answer}");
    assert_eq!(status["restarts_total"], 0, "that is no crash");
    home.install_worker();
    assert!(
        get(supervisor.wait_for_state("a", "running")["address"].as_str().unwrap().parse().unwrap(), "/health")
            .unwrap()
            .contains("generation")
    );
    supervisor.stop();
}

#[test]
fn a_replaced_worker_ends_its_answers_and_none_is_refused() {
    const LINES: usize = 100;
    let home = Home::new(&endpoint("a", ""));
    let supervisor = home.start();
    let address = supervisor.wake("a");
    let mut stream = BufReader::new(begin(address, &format!("/stream/{LINES}")).unwrap());
    let mut line = String::new();
    while !line.starts_with("0 of generation 1") {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0);
    }
    for generation in 2..=4 {
        supervisor.call("endpoint.restart", json!({ "id": "a" }));
        supervisor.wait_for_endpoint("a", "the next worker", |status| {
            status["generation"] == generation && status["state"] == "running"
        });
    }
    let rest: Vec<String> = stream.lines().map(Result::unwrap).collect();
    let expected: Vec<String> = (1..LINES).map(|line| format!("{line} of generation 1")).collect();
    assert_eq!(rest, expected);
    assert!(get(address, "/health").unwrap().ends_with("generation 4\n"));
    wait_for("the old workers to end", || (home.processes().len() == 2).then_some(()));
    assert_eq!(supervisor.endpoint("a")["restarts_total"], 0);
    supervisor.stop();
}

/// What a worker is made to leak; `scripts/processes.sh` asks for more.
const LEAK_MIB_S: &str = "CODEX_SUPERVISOR_TEST_LEAK_MIB_S";
const MIB: u64 = 1024 * 1024;

#[test]
fn a_leaking_worker_is_replaced_before_its_limit_again_and_again_and_no_stream_is_cut() {
    // Its limit is what it leaks in twenty seconds.
    let mib_s: u64 = std::env::var(LEAK_MIB_S).ok().and_then(|mib| mib.parse().ok()).unwrap_or(10);
    let limit = mib_s * MIB * 1024 / 50;
    let settings = format!("[daemon]\nworker_memory_bytes_max = {limit}\n");
    let home = Home::new(&(settings + &endpoint("a", &format!("name = \"leak {mib_s}\""))));
    let supervisor = home.start();
    let mut events = supervisor.connect();
    events.call("events.subscribe", Value::Null);
    let address = supervisor.wake("a");
    // Each generation's streams outlast it.
    for generation in 1..=2 {
        let streams: Vec<_> = (0..20)
            .map(|_| {
                let stream = begin(address, "/outlast/50").unwrap();
                std::thread::spawn(move || BufReader::new(stream).lines().map(Result::unwrap).collect::<Vec<_>>())
            })
            .collect();
        let told = std::iter::from_fn(|| events.receive().unwrap())
            .find(|event| event["params"]["kind"] == "worker.memory-high")
            .unwrap();
        let detail = &told["params"]["detail"];
        assert_eq!((&detail["generation"], &detail["limit"]), (&json!(generation), &json!(limit)));
        let bytes = detail["bytes"].as_u64().unwrap();
        assert!(bytes < limit, "{told}");
        for stream in streams {
            let lines = stream.join().unwrap();
            let lines = &lines[lines.iter().position(String::is_empty).expect("an empty line ends the head") + 1..];
            for (number, line) in lines.iter().enumerate() {
                let end = if number + 1 == lines.len() { "the end" } else { "more" };
                assert_eq!(*line, format!("{number} of generation {generation}, {end}"));
            }
            assert!(lines.len() > 50);
        }
        println!("generation {generation} was replaced at {} of {} MiB", bytes / MIB, limit / MIB);
    }
    let status = supervisor.endpoint("a");
    assert_eq!((&status["restarts_total"], &status["last_exit"]), (&json!(0), &Value::Null), "that was no crash");
    supervisor.stop();
}

#[test]
fn a_worker_that_goes_on_leaking_while_it_ends_has_little_time() {
    let settings = "[daemon]\nstop_timeout_s = 1\nworker_memory_bytes_max = 67108864\n".to_owned();
    let home = Home::new(&(settings + &endpoint("a", "name = \"leak 20\"")));
    let supervisor = home.start();
    let address = supervisor.wake("a");
    let worker = supervisor.worker("a");
    let mut stream = begin(address, "/outlast/1000000").unwrap();
    supervisor.wait_for_endpoint("a", "the next worker", |status| status["generation"] == 2);
    wait_for("the end of the first", || worker.has_ended().then_some(()));
    let mut rest = Vec::new();
    // Cut, but only after it was told to end and would not.
    let _ = stream.read_to_end(&mut rest);
    assert!(fs::read_to_string(home.state("logs/supervisor.log")).unwrap().contains("has to end soon"));
    supervisor.stop();
}

#[test]
fn a_worker_that_will_not_end_is_ended() {
    let home = Home::new(&("[daemon]\nstop_timeout_s = 1\n".to_owned() + &endpoint("a", "name = \"stubborn\"")));
    let supervisor = home.start();
    supervisor.wake("a");
    let stopped_at = Instant::now();
    supervisor.stop();
    let elapsed = stopped_at.elapsed();
    assert!(elapsed > Duration::from_secs(2) && elapsed < PATIENCE, "{elapsed:?}");
}

#[test]
fn told_to_end_twice_it_ends_at_once() {
    let home = Home::new(&("[daemon]\nstop_timeout_s = 600\n".to_owned() + &endpoint("a", "name = \"stubborn\"")));
    let supervisor = home.start();
    supervisor.wake("a");
    supervisor.signal(Signal::TERM);
    wait_for("it to be told", || {
        fs::read_to_string(home.state("logs/supervisor.log")).unwrap().contains("stopping").then_some(())
    });
    let (code, message, _) = supervisor.refusal("endpoint.start", json!({ "id": "a" }));
    assert_eq!((code, message.as_str()), (2, "the supervisor is about to end"));
    supervisor.stop();
}

#[test]
fn a_stop_does_not_wait_for_whoever_holds_codexs_configuration() {
    let settings = "[daemon]\nhealth_failures_max = 100\n".to_owned() + &endpoint("a", "name = \"sick\"");
    let home = Home::new(&settings);
    let supervisor = home.start();
    supervisor.wait_for_state("a", "running");
    let file = home.path().join(".codex/config.toml");
    fs::create_dir(file.parent().unwrap()).unwrap();
    fs::write(&file, "# mine\n").unwrap();
    let config = CodexConfig::new(&home.paths());
    let keys = vec![Key::text("model", "of-ours")];
    config.hold(Holder { id: "use".to_owned(), endpoint: None, keys, processes: Vec::new(), since_ms: 0 }).unwrap();
    let ours = fs::read_to_string(&file).unwrap();
    let lock = fs::File::open(config.backups_folder().with_file_name("lock")).unwrap();
    lock.lock().unwrap();
    // It is there while it waits, for whoever waits for an answer and for whoever asks: the second call is read when
    // the first one is answered, and that is when it is told to end.
    let mut client = supervisor.connect();
    client.call("endpoint.list", Value::Null);
    let params = json!({ "id": "a", "timeout_ms": PATIENCE.as_millis() });
    let line = json!({ "jsonrpc": "2.0", "id": 1, "method": "endpoint.wake", "params": params });
    client.send(format!("{line}\n{line}\n").as_bytes());
    let told_at = Instant::now();
    supervisor.signal(Signal::TERM);
    for _ in 0..2 {
        let (code, message, _) = refused_by(&client.receive().unwrap().expect("an answer"));
        assert_eq!((code, message.as_str()), (2, "the supervisor is about to end"));
    }
    assert!(supervisor.wait().success());
    let elapsed = told_at.elapsed();
    assert!(elapsed < Duration::from_secs(8), "{elapsed:?}"); // the lock alone is waited for ten seconds elsewhere
    assert_eq!(fs::read_to_string(&file).unwrap(), ours);
    let log = home.log("supervisor");
    // By whoever waited for the lock, or in its place.
    let tells = |text: &str| log.contains(text);
    assert!(
        tells("it still points Codex at an endpoint, which ends") || tells("it may still point at an endpoint"),
        "{log}"
    );
    home.assert_nothing_is_left();
    drop(lock);
    config.restore().unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "# mine\n");
}

#[test]
fn a_stop_is_remembered_and_answered_for() {
    let home = Home::new(&endpoint("a", ""));
    let supervisor = home.start();
    let address = supervisor.wake("a");
    assert_eq!(supervisor.call("endpoint.stop", json!({ "id": "a" }))["state"], "stopped");
    let sentence = "codex-supervisor: the endpoint `a` is stopped; start it with `codexctl start a`";
    assert!(get(address, "/v1/responses").unwrap().ends_with(sentence));
    let (code, message, hint) = supervisor.refusal("endpoint.wake", json!({ "id": "a", "timeout_ms": 30_000 }));
    assert_eq!(
        (code, message.as_str(), hint.as_str()),
        (4, "the endpoint `a` is stopped", "`codexctl start a` starts it")
    );
    supervisor.stop();
    let supervisor = home.start();
    assert_eq!(supervisor.endpoint("a")["state"], "stopped");
    assert!(get(address, "/v1/responses").unwrap().ends_with(sentence));
    supervisor.call("endpoint.start", json!({ "id": "a" }));
    assert_eq!(supervisor.wake("a"), address);
    supervisor.stop();
    let supervisor = home.start();
    supervisor.wake("a");
    supervisor.stop();
}
