//! The incident engine over real workers: what is new reaches an AI once, what it advises is verified, what is learned
//! is used; an AI that fails or misbehaves costs nothing but an alert; no secret gets anywhere.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use codex_control::environment;
use codex_control::incident::{Action, AttemptState, Fault, Incident, IncidentState, Tier};
use codex_control::rpc::{EndpointState, MonitorStatus};
use e2e::home::{DEADLINE, PROVIDER_KEY, Running, SandboxHome, endpoint_of};
use e2e::http;
use e2e::provider::{FakeProvider, Script, Step, When};
use e2e::until::until;
use serde_json::{Value, json};

/// Longest time for the longest way: a question of fifteen seconds, and a busy machine.
const LONG: Duration = Duration::from_mins(1);

/// A provider of a model that diagnoses, and answers everything with `steps`.
fn expert(steps: impl Into<Vec<Step>>) -> FakeProvider {
    let script =
        Script::new().key(PROVIDER_KEY).allow("temperature").allow("max_tokens").allow("max_completion_tokens");
    FakeProvider::start(script.always(When::any(), steps))
}

/// A home whose endpoint `expert` is asked, and further endpoints without a provider.
fn home_with(expert: &FakeProvider, others: &[&str]) -> SandboxHome {
    home_with_rules(expert, others, "")
}

/// The same with rules of the person's own.
fn home_with_rules(expert: &FakeProvider, others: &[&str], rules: &str) -> SandboxHome {
    let home = SandboxHome::new();
    let mut settings = format!("[monitor]\nai_endpoint = \"expert\"\n\n{}", endpoint_of("expert", expert));
    for id in others {
        let section = format!(
            "\n[[endpoint]]\nid = \"{id}\"\nprotocol = \"chat-completions\"\nbase_url = \"http://127.0.0.1:9/v1\"\n\
             auth = {{ kind = \"none\" }}\n"
        );
        settings.push_str(&section);
    }
    home.write_settings(&settings);
    fs::write(home.paths().config_folder().join("rules.toml"), rules).expect("the folder is ours");
    home.store_key("expert", PROVIDER_KEY);
    home.start();
    for id in others.iter().copied().chain(["expert"]) {
        home.wait_state(id, EndpointState::Running);
    }
    home
}

fn report(home: &SandboxHome, what: &str, endpoint: &str) {
    home.rpc("incident.report", json!({ "what": what, "endpoint": endpoint })).expect("the report is taken");
}

/// The newest incident of `endpoint` that `fits`, once there is one.
fn incident(home: &SandboxHome, endpoint: &str, what: &str, fits: impl Fn(&Incident) -> bool) -> Incident {
    until(what, LONG, || {
        let asked = json!({ "endpoint": endpoint, "whole": true });
        let incidents = home.rpc("incident.list", asked).expect("incidents are listed");
        let incidents: Vec<Incident> = serde_json::from_value(incidents).expect("incidents have the agreed shape");
        incidents.into_iter().find(|incident| fits(incident))
    })
}

fn steps(incident: &Incident) -> String {
    incident.timeline.iter().map(|step| step.text.as_str()).collect::<Vec<_>>().join("\n")
}

/// Follows all events, from now on.
fn follow_events(home: &SandboxHome) -> Running {
    let events = home.spawn(home.ctl_command(&["rpc", "events.subscribe"]));
    until("the subscription", DEADLINE, || {
        // Told each time; the settings are the same.
        home.rpc("daemon.reload", Value::Null).expect("the settings are good");
        (!events.stdout().is_empty()).then_some(())
    });
    events
}

fn monitor(home: &SandboxHome) -> MonitorStatus {
    let status = home.rpc("monitor.show", Value::Null).expect("the monitor is shown");
    serde_json::from_value(status).expect("it has the agreed shape")
}

#[test]
fn what_is_new_reaches_the_ai_once_and_is_known_from_then_on() {
    let advice = r#"{"action": "clear_schema_cache", "reason": "a fact was learned wrongly", "confidence": 0.9}"#;
    let provider = expert([Step::text(advice)]);
    let ids: Vec<String> = (1..=11).map(|n| format!("e{n}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let home = home_with(&provider, &ids);

    report(&home, "upstream-nonsense", "e1");
    let watched = |incident: &Incident| {
        incident.attempts.iter().any(|attempt| matches!(attempt.state, AttemptState::Watched { .. }))
    };
    incident(&home, "e1", "the advice to be carried out", watched);
    report(&home, "upstream-good", "e1");
    let first =
        incident(&home, "e1", "it to be seen that it helped", |incident| incident.state == IncidentState::Resolved);
    let [attempt] = &first.attempts[..] else { panic!("{first:#?}") };
    assert_eq!(
        (attempt.tier, attempt.action, attempt.state),
        (Tier::Ai, Action::ClearSchemaCache, AttemptState::Helped)
    );

    // The same elsewhere, nine times: other endpoints, so that no pause between actions on one of them is waited for.
    for id in &ids[1..10] {
        report(&home, "upstream-nonsense", id);
    }
    for id in &ids[1..10] {
        incident(&home, id, "the known fix to be carried out", watched);
        report(&home, "upstream-good", id);
        let again = incident(&home, id, "its end", |incident| incident.state == IncidentState::Resolved);
        let [attempt] = &again.attempts[..] else { panic!("{again:#?}") };
        assert_eq!(
            (attempt.tier, attempt.action, attempt.state),
            (Tier::Pattern, Action::ClearSchemaCache, AttemptState::Helped)
        );
    }
    report(&home, "upstream-nonsense", ids[10]);
    incident(&home, ids[10], "the known fix to be carried out", |incident| {
        incident.attempts.iter().any(|attempt| attempt.tier == Tier::Pattern)
    });

    let asked = provider.requests();
    assert_eq!(asked.len(), 1, "after ten times with success nobody is asked");
    let body = &asked[0].body;
    assert_eq!(body["temperature"], json!(0.1), "{body:#}");
    assert_eq!(body["max_tokens"].as_u64().or(body["max_completion_tokens"].as_u64()), Some(200), "{body:#}");
    let status = monitor(&home);
    assert_eq!((status.ai_calls_month, status.ai_calls_day), (1, 1));
    assert!(status.ai_input_tokens > 0 && status.ai_output_tokens > 0, "{status:?}");

    // What a person sees of it.
    let list = home.ctl(&["incidents"]).ok();
    assert!(list.contains("🤖") && list.contains("clear_schema_cache (Tier 3)"), "{list}");
    assert!(list.contains("✅") && list.contains("clear_schema_cache (Tier 2)"), "{list}");
    let shown = home.ctl(&["incidents", "show", &first.id.to_string()]).ok();
    assert!(shown.contains("the AI advises clear_schema_cache"), "{shown}");
    let exported: Value = serde_json::from_str(&home.ctl(&["incidents", "export", "--format", "store"]).ok()).unwrap();
    assert!(
        exported["incidents"].as_object().unwrap().values().any(|known| known["success_count"] == 10),
        "{exported:#}"
    );
}

/// An AI that answers `steps` leads to an alert with `why`, and to nothing else.
fn leads_to_an_alert_alone(steps: impl Into<Vec<Step>>, why: &str) {
    let provider = expert(steps);
    let home = home_with(&provider, &["a"]);
    asks_in_vain(&home, why);
}

fn asks_in_vain(home: &SandboxHome, why: &str) {
    let before = home.endpoint("a");
    report(home, "upstream-nonsense", "a");
    let told = incident(home, "a", "the alert", |incident| incident.state == IncidentState::Alerted);
    assert!(steps(&told).contains(why), "{}", steps(&told));
    assert!(told.attempts.is_empty(), "{told:#?}");
    let after = home.endpoint("a");
    assert_eq!((after.worker_pid, after.generation), (before.worker_pid, before.generation));
    // One that cannot be reached has an incident of its own; nothing of that is the AI's.
    let actions = home.rpc("action.list", Value::Null).expect("actions are listed");
    let of_a = |line: &&Value| line["endpoint"] != "expert" || line["attempt"]["tier"] == "ai";
    assert_eq!(actions.as_array().expect("a list").iter().filter(of_a).collect::<Vec<_>>(), Vec::<&Value>::new());
    assert_eq!(monitor(home).ai_calls_day, 1, "a question in vain counts as well");
}

#[test]
fn an_ai_that_answers_prose_leads_to_an_alert() {
    leads_to_an_alert_alone([Step::text("I would restart_proxy, I think.")], "its answer cannot be used");
}

#[test]
fn an_ai_that_answers_in_a_fence_leads_to_an_alert() {
    let fenced = "```json\n{\"action\": \"restart_proxy\", \"reason\": \"x\", \"confidence\": 1.0}\n```";
    leads_to_an_alert_alone([Step::text(fenced)], "its answer cannot be used");
}

#[test]
fn an_ai_that_invents_an_action_leads_to_an_alert() {
    let unknown = r#"{"action": "delete_everything", "reason": "x", "confidence": 1.0}"#;
    leads_to_an_alert_alone([Step::text(unknown)], "its answer cannot be used");
}

#[test]
fn an_ai_that_wants_to_delete_files_leads_to_an_alert() {
    let command = r#"{"action": "rm -rf /", "reason": "x", "confidence": 1.0}"#;
    leads_to_an_alert_alone([Step::text(command)], "its answer cannot be used");
}

#[test]
fn an_ai_that_answers_a_megabyte_leads_to_an_alert() {
    let long = format!(r#"{{"action": "restart_proxy", "reason": "{}", "confidence": 1.0}}"#, "x".repeat(1024 * 1024));
    leads_to_an_alert_alone([Step::Raw(whole_answer(&long))], "its answer is longer than");
}

/// One event with all of the text, and the end: word by word a megabyte takes long.
fn whole_answer(text: &str) -> String {
    let chunk = |delta: Value, finish: Value| {
        let choice = json!({ "index": 0, "delta": delta, "finish_reason": finish });
        let chunk = json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "scripted", "choices": [choice] });
        format!("data: {chunk}\n\n")
    };
    chunk(json!({ "role": "assistant", "content": text }), Value::Null)
        + &chunk(json!({}), json!("stop"))
        + "data: [DONE]\n\n"
}

#[test]
fn an_ai_that_takes_too_long_leads_to_an_alert() {
    leads_to_an_alert_alone([Step::PauseMs(40_000), Step::text("{}")], "it did not answer within 15 s");
}

#[test]
fn an_ai_that_is_down_leads_to_an_alert() {
    let provider = expert([Step::text("{}")]);
    let home = home_with(&provider, &["a"]);
    drop(provider);
    asks_in_vain(&home, "");
}

/// A command that is refused with this message.
fn is_refused(home: &SandboxHome, arguments: &[&str], code: i32, message: &str) {
    let output = home.ctl(arguments);
    assert!(
        output.code() == code && output.stderr.contains(message),
        "{arguments:?}: {} {}",
        output.code(),
        output.stderr
    );
}

#[test]
fn the_monitor_is_shown_and_set() {
    let home = home_with(&expert([Step::text("{}")]), &[]);
    let settings = || fs::read_to_string(home.paths().settings()).expect("there are settings");
    home.write_settings(&settings().replace("[monitor]", "# mine\n[monitor]"));
    let shown = home.ctl(&["monitor", "show"]).ok();
    assert!(shown.starts_with("monitoring is ON, 0 incidents open\n"), "{shown}");
    assert!(shown.contains("scripted on `expert`") && shown.contains("$0.00 of $2.00 (0 questions"), "{shown}");
    let off = home.ctl(&["monitor", "off"]).ok();
    assert!(off.starts_with("monitoring is OFF"), "{off}");
    assert!(settings().contains("# mine") && settings().contains("enabled = false"), "{}", settings());
    assert!(!monitor(&home).settings.enabled);
    assert!(home.ctl(&["monitor", "on"]).ok().starts_with("monitoring is ON"));
    let set = home.ctl(&["monitor", "set", "ai_budget_cents", "500", "--json"]).ok();
    let set: MonitorStatus = serde_json::from_str(&set).expect("it has the agreed shape");
    assert_eq!(set.settings.ai_budget_cents, 500);
    assert!(home.ctl(&["monitor", "set", "ai_budget_cents"]).ok().contains("of $2.00"), "removed: the default holds");
    assert!(home.ctl(&["monitor", "set", "tier3_enabled", "false"]).ok().contains("nobody: `tier3_enabled` is off"));
    is_refused(&home, &["monitor", "set", "tier4_enabled", "true"], 1, "tier4_enabled");
    is_refused(&home, &["monitor", "set", "notification_level", "loud"], 1, "loud");
    is_refused(&home, &["monitor", "set"], 2, "KEY");
    assert!(settings().contains("# mine"), "{}", settings());
}

#[test]
fn tables_are_shown_and_checked_with_what_has_become_of_them() {
    let home = home_with(&expert([Step::text("{}")]), &["a"]);
    report(&home, "dsml-name-mismatch", "a");
    report(&home, "upstream-server-error", "a");
    report(&home, "upstream-good", "a");
    incident(&home, "a", "the worker's own attempt to be seen", |incident| incident.state == IncidentState::Resolved);
    let rules = home.ctl(&["rules"]).ok();
    let line = |text: &str, of: &str| {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(of)).map(str::to_owned);
        line.unwrap_or_else(|| panic!("{of} in {text}"))
    };
    assert!(line(&rules, "proxy_health_fail").contains("restart_proxy"), "{rules}");
    assert!(line(&rules, "stream_reset").contains("worker unwell"), "{rules}");
    assert!(line(&rules, "upstream_502_503").ends_with("1     1"), "done once, helped once: {rules}");
    let json: Value = serde_json::from_str(&home.ctl(&["rules", "--json"]).ok()).expect("JSON");
    assert!(json["rules"].as_array().expect("a list").len() > 30, "{json:#}");
    assert_eq!(json["counts"]["upstream_502_503"]["helped"], 1, "{json:#}");

    let faults = home.ctl(&["faults"]).ok();
    assert_eq!(faults.lines().count(), 1 + Fault::ALL.len(), "{faults}");
    assert!(line(&faults, "B2").ends_with('1') && line(&faults, "A1").ends_with('0'), "{faults}");
    let json: Value = serde_json::from_str(&home.ctl(&["faults", "--json"]).ok()).expect("JSON");
    assert_eq!(json["faults"][0]["id"], "A1", "{json:#}");

    assert!(home.ctl(&["rules", "check"]).ok().ends_with("and all other tables are sound\n"));
    let folder = home.paths().config_folder().to_owned();
    let rule = "[[rule]]\nid = 'mine'\nfault = 'B1'\ndo = ['ignore', 'alert_user']\n";
    fs::write(folder.join("rules.toml"), rule).expect("the folder is ours");
    is_refused(&home, &["rules", "check"], 1, "rules.toml: `mine`: `do`: `ignore` and `diagnose` stand alone");
    fs::write(folder.join("rules.toml"), rule.replace("'ignore', ", "")).expect("the folder is ours");
    fs::write(folder.join("patterns.toml"), "[[pattern]]\nid = 3\n").expect("the folder is ours");
    is_refused(&home, &["rules", "check"], 1, "patterns.toml:2:6: ");
}

#[test]
fn actions_are_listed_cancelled_and_taken_back() {
    // One that asks first waits as long as this takes.
    let rule =
        "[[rule]]\nid = 'schema_content_type_array'\nfault = 'E1'\ndo = ['delete_provider_caps']\nmode = 'ask'\n";
    let home = home_with_rules(&expert([Step::text("{}")]), &["a"], rule);
    assert_eq!(home.ctl(&["actions"]).ok(), "nothing is being done, and nothing stands that was\n");
    let action = |what: &str, fits: &dyn Fn(&Value) -> bool| {
        until(what, LONG, || {
            let lines: Value = serde_json::from_str(&home.ctl(&["actions", "list", "--json"]).ok()).expect("JSON");
            lines.as_array().expect("a list").iter().find(|line| fits(line)).cloned()
        })
    };
    let id = |line: &Value| line["attempt"]["id"].to_string();

    // The worker has said that what it knows is sound: that comes before what it says of its requests.
    assert_eq!(home.post_responses("a", b"no JSON").status, 400);
    home.wait_answered(1);
    report(&home, "facts-corrupt", "a");
    let waits = action("the question", &|line| line["attempt"]["state"] == "asked");
    let listed = home.ctl(&["actions"]).ok();
    assert!(listed.contains("waits for your yes") && listed.contains("delete_provider_caps"), "{listed}");
    let cancelled = home.ctl(&["actions", "cancel", &id(&waits)]).ok();
    assert_eq!(cancelled, "cancelled: delete_provider_caps on `a`\n");
    is_refused(&home, &["actions", "cancel", &id(&waits)], 1, "was cancelled already");
    is_refused(&home, &["actions", "cancel", "4711"], 1, "there is no action 4711 that waits or stands");

    report(&home, "upstream-timed-out", "a");
    let stands = action("the timeouts to be raised", &|line| line["stands"] == true);
    assert_eq!(stands["attempt"]["then"], "increase_timeout", "{stands:#}");
    assert!(home.ctl(&["actions"]).ok().contains("stands, for "));
    let status = home.ctl(&["endpoint", "show", "a", "--json"]).ok();
    assert!(status.contains("\"timeout_raises\":1"), "{status}");
    let taken_back = home.ctl(&["actions", "cancel", &id(&stands)]).ok();
    assert!(taken_back.starts_with("taken back: ") && taken_back.ends_with(" on `a`\n"), "{taken_back}");
    let status = home.ctl(&["endpoint", "show", "a", "--json"]).ok();
    assert!(!status.contains("timeout_raises"), "{status}");
}

#[test]
fn a_log_is_played_with_the_rules_in_force_and_with_others() {
    let home = home_with(&expert([Step::text("{}")]), &["a"]);
    let signal = |at_ms: u64, what: &str| {
        json!({ "at_ms": at_ms, "signal": { "what": what, "endpoint": "zai" } }).to_string() + "\n"
    };
    let log = [
        signal(1_000, "upstream-unauthorized"),
        signal(2_000, "upstream-good"),
        signal(90_000, "upstream-server-error"),
        signal(91_000, "upstream-good"),
    ];
    home.write("work/signals.jsonl", &log.concat());
    home.write(
        "work/mine.toml",
        "[[rule]]\nid = 'upstream_401_403'\nfault = 'B3'\ndo = ['alert_user']\nmode = 'off'\n",
    );
    let log = home.path("work/signals.jsonl");
    let simulate = |more: &[&str]| {
        let mut arguments = vec!["incidents", "simulate", log.to_str().expect("UTF-8")];
        arguments.extend(more);
        home.ctl(&arguments)
    };
    let rules = home.path("work/mine.toml");
    let with = ["--rules", rules.to_str().expect("UTF-8")];
    let played = simulate(&[]).ok();
    assert!(played.starts_with("4 signals: 2 incidents, 1 notice, 0 questions to an AI\n"), "{played}");
    assert!(played.contains("retry_with_backoff (Tier 1)") && played.contains("you would be told: "), "{played}");
    let played = simulate(&with).ok();
    assert!(played.starts_with("4 signals: 1 incident, 0 notices, 0 questions to an AI\n"), "{played}");
    let listed = home.ctl(&["incidents"]).ok();
    assert!(listed.starts_with("nothing went wrong"), "nothing of it has happened: {listed}");

    home.write("work/mine.toml", "[[rule]]\nid = 'upstream_401_403'\nfault = 'B3'\ndo = []\n");
    let refused = simulate(&with);
    assert!(refused.code() == 1 && refused.stderr.contains("`do` must name 1 to 2 actions"), "{}", refused.stderr);
    home.write("work/signals.jsonl", &(signal(1, "upstream-good") + "{}\n"));
    let refused = simulate(&[]);
    assert!(refused.code() == 1 && refused.stderr.contains("signals.jsonl:2: "), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint: each line is like"), "{}", refused.stderr);
}

#[test]
fn a_report_of_incidents_is_whole_in_each_form() {
    let home = home_with(&expert([Step::text("{}")]), &["a"]);
    let none = home.ctl(&["incidents", "export"]).ok();
    assert_eq!(none, "# Incidents in the last 7 days\n\nNone.\n");
    home.rpc(
        "incident.report",
        json!({ "what": "upstream-tls-failed", "endpoint": "a", "detail": "it says ```` here" }),
    )
    .expect("the report is taken");
    let told = incident(&home, "a", "the alert", |incident| incident.state == IncidentState::Alerted);
    let report = home.ctl(&["incidents", "export", "--since", "all"]).ok();
    assert!(report.contains("`a`: A6 ") && report.contains("you were told"), "{report}");
    assert_eq!(
        report.lines().filter(|line| line.starts_with("`````")).count(),
        2,
        "a fence that nothing ends: {report}"
    );
    let json: Vec<Incident> =
        serde_json::from_str(&home.ctl(&["incidents", "export", "--format", "json"]).ok()).expect("incidents");
    assert_eq!(json.iter().map(|incident| incident.id).collect::<Vec<_>>(), [told.id]);
    assert_eq!(json[0].timeline, told.timeline, "whole");
    let store: Value =
        serde_json::from_str(&home.ctl(&["incidents", "export", "--format", "store"]).ok()).expect("JSON");
    assert_eq!((&store["version"], &store["cost_usd"]), (&json!(1), &json!(0.0)), "{store:#}");
    is_refused(&home, &["incidents", "export", "--format", "html"], 2, "html");
}

/// A key that says of itself when it ends.
pub(crate) fn web_token(ends_at_s: u64) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.signature", part(json!({ "alg": "none" })), part(json!({ "exp": ends_at_s })))
}

#[test]
fn an_expired_sign_in_is_asked_for_anew_and_then_the_person() {
    const PAST_S: u64 = 1_700_000_000;
    const FUTURE_S: u64 = 4_000_000_000;
    let home = SandboxHome::new();
    let ids = ["renewed", "in-vain"];
    let key = |id: &str| format!("work/key-of-{id}");
    let section = |id: &str| {
        let key = home.path(&key(id));
        format!(
            "[[endpoint]]\nid = \"{id}\"\nprotocol = \"chat-completions\"\nbase_url = \"http://127.0.0.1:9/v1\"\n\
             auth = {{ command = [\"cat\", \"{}\"] }}\n\n",
            key.display()
        )
    };
    home.write_settings(&ids.map(section).concat());
    for id in ids {
        home.write(&key(id), &web_token(PAST_S));
    }
    home.start();
    let is_seen = |incident: &Incident| incident.fault == Some(Fault::E4);
    // Its command is asked again soon: the new key is there at once, and whole.
    incident(&home, "renewed", "the expiry to be seen", is_seen);
    home.write("work/new-key", &web_token(FUTURE_S));
    fs::rename(home.path("work/new-key"), home.path(&key("renewed"))).expect("the home is writable");
    incident(&home, "in-vain", "the expiry to be seen", is_seen);
    let renewed = incident(&home, "renewed", "its end", |incident| incident.state == IncidentState::Resolved);
    let attempt = &renewed.attempts[0];
    assert_eq!((attempt.action, attempt.state), (Action::RefreshToken, AttemptState::Helped), "{renewed:#?}");
    let told = incident(&home, "in-vain", "the alert", |incident| incident.state == IncidentState::Alerted);
    let attempt = &told.attempts[0];
    assert_eq!((attempt.action, attempt.state), (Action::RefreshToken, AttemptState::Failed), "{told:#?}");
    assert!(attempt.result.contains("the key that is there has expired"), "{}", attempt.result);
    let shown = home.ctl(&["incidents", "show", &told.id.to_string()]).ok();
    assert!(shown.contains("you were told") && shown.contains("codexctl login in-vain"), "{shown}");
    assert!(!home.logs().contains(&web_token(PAST_S)), "and the key is in no log");
}

/// Secrets of twenty shapes, each unlike any other text.
fn canaries() -> Vec<String> {
    let word = |n: usize| format!("Canary{n:02}x9Kq3Zt7Wb1Lm5Rv8");
    let hex = |n: usize| format!("{n:02x}c0ffee9a7b3d5e1f4c6a8b0d2e4f6a8c0e1b3d");
    vec![
        format!("sk-proj-{}", word(1)),
        format!("sk-ant-api03-{}", word(2)),
        format!("sk-or-v1-{}", word(3)),
        format!("gsk_{}", word(4)),
        format!("xai-{}", word(5)),
        format!("ghp_{}", word(6)),
        format!("github_pat_{}", word(7)),
        format!("hf_{}", word(8)),
        format!("nvapi-{}", word(9)),
        format!("AIza{}", word(10)),
        format!("ya29.{}", word(11)),
        format!("1//0g{}", word(12)),
        format!("eyJhbGciOiJIUzI1NiJ9.eyJzdWIi{}.{}", word(13), word(13)),
        format!("AKIA{}", "CANARY14Z9K3T7W1"),
        format!("{}.{}", "15c0ffee9a7b3d5e1f4c6a8b0d2e4f6a", word(15)),
        hex(16),
        format!("Bearer {}", word(17)),
        format!("api_key={}", word(18)),
        format!("password: {}", word(19)),
        format!("https://canary:{}@host.invalid/", word(20)),
    ]
}

/// Secrets without any shape: the key and a header's value. The worker knows them because it uses them.
const SHAPELESS: [&str; 2] = ["canaryOfPlainWordsWithoutAShape", "canaryTwoIsPlainWordsLikewise"];

/// The part of a canary that must not be seen anywhere.
fn heart(canary: &str) -> String {
    let core = canary.find("anary").map_or(canary, |at| &canary[at..]);
    core.trim_end_matches("@host.invalid/").chars().take(20).collect()
}

#[test]
fn secrets_of_twenty_shapes_get_nowhere() {
    let canaries = canaries();
    assert_eq!(canaries.len(), 20);
    let all = canaries.join(" ; ");
    let advisor = expert([Step::text(r#"{"action": "ignore", "reason": "it passes", "confidence": 0.9}"#)]);
    // A provider that throws everything it was given back, in an error.
    let [plain_key, plain_header] = SHAPELESS;
    let message = format!("refused: {plain_key} with '{plain_header}'; {all}");
    let body = json!({ "error": { "message": message, "type": "invalid_request_error" } });
    let leaky = FakeProvider::start(Script::new().always(When::any(), [Step::status(400, &body)]));
    let home = SandboxHome::new();
    home.write_settings(&format!(
        "[monitor]\nai_endpoint = \"expert\"\n\n{}\n{}headers = {{ x-api-key = \"{plain_header}\" }}\n",
        endpoint_of("expert", &advisor),
        endpoint_of("leaky", &leaky),
    ));
    home.store_key("expert", PROVIDER_KEY);
    home.store_key("leaky", plain_key);
    let codex = home.path("work/codex");
    home.write("work/codex", &format!("#!/bin/sh\ncat >/dev/null\necho 'ERROR: Reconnecting... 1/5 {all}' >&2\n"));
    fs::set_permissions(&codex, fs::Permissions::from_mode(0o700)).expect("the file is ours");
    home.start();
    home.wait_state("leaky", EndpointState::Running);
    home.wait_state("expert", EndpointState::Running);
    let mut events = follow_events(&home);

    // In a prompt, in an error, and in what another program reports.
    let question = json!({ "model": "scripted", "input": format!("keep {all}"), "stream": true }).to_string();
    let answer = home.post_responses("leaky", question.as_bytes()).text();
    assert!(answer.contains("refused: [redacted] with '[redacted]'"), "{answer}");
    let mut launch = home.launch_command("leaky", &["exec", "x"]);
    launch.env(environment::CODEX, codex);
    // What the person is shown is as Codex wrote it, and not among the files below.
    let shown = launch.stdin(Stdio::null()).output().expect("it starts");
    assert!(String::from_utf8_lossy(&shown.stderr).contains(&canaries[0]), "{shown:?}");
    for canary in &canaries {
        let signal =
            json!({ "what": "upstream-nonsense", "endpoint": "leaky", "detail": format!("it said {canary} !") });
        home.rpc("incident.report", signal).expect("the report is taken");
    }
    until("the AI to be asked", LONG, || (!advisor.requests().is_empty()).then_some(()));
    incident(&home, "leaky", "an incident with an attempt or an alert", |incident| !incident.timeline.is_empty());
    until("events to be told", DEADLINE, || events.stdout().contains("\"kind\":\"incident\"").then_some(()));

    let mut seen = vec![(
        "the AI's prompt".to_owned(),
        advisor.requests().iter().map(|request| request.body.to_string()).collect(),
    )];
    for format in ["markdown", "json", "store"] {
        seen.push((
            format!("the {format} export"),
            home.ctl(&["incidents", "export", "--since", "all", "--format", format]).ok(),
        ));
    }
    seen.push(("the list".to_owned(), home.ctl(&["incidents", "--json"]).ok()));
    seen.push(("the usage".to_owned(), home.ctl(&["usage", "--json"]).ok()));
    seen.push(("the status".to_owned(), home.ctl(&["status", "--json"]).ok()));
    seen.push(("the endpoint".to_owned(), home.ctl(&["endpoint", "show", "leaky", "--json"]).ok()));
    let accounts = home.ctl(&["accounts", "leaky", "--json"]).ok();
    assert!(accounts.contains("\"has_key\":true"), "{accounts}");
    seen.push(("the accounts".to_owned(), accounts));
    let bearer = format!("Bearer {}", home.token("leaky"));
    for path in ["/monitoring", "/metrics", "/health"] {
        let answer = http::request(home.address("leaky"), "GET", path, &[("authorization", &bearer)], b"").unwrap();
        seen.push((path.to_owned(), answer.text()));
    }
    home.stop();
    seen.push(("the events".to_owned(), events.stdout()));
    assert!(!events.has_ended() || !events.stdout().is_empty());
    for folder in ["state", "cache", "run", "logs"] {
        for file in files(&home.path(folder)) {
            if file.ends_with("logs/0.out") || file.extension().is_some_and(|extension| extension == "out") {
                continue; // what our own commands have printed: looked at above
            }
            let text = String::from_utf8_lossy(&fs::read(&file).unwrap_or_default()).into_owned();
            seen.push((file.display().to_string(), text));
        }
    }
    let names: Vec<&str> = seen.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.iter().any(|name| name.ends_with("state.db")), "{names:?}");
    let found: Vec<String> = seen
        .iter()
        .flat_map(|(name, text)| {
            canaries
                .iter()
                .map(|canary| heart(canary))
                .chain(SHAPELESS.map(str::to_owned))
                .filter(|heart| text.contains(heart))
                .map(move |heart| format!("{heart} in {name}"))
        })
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}

fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}
