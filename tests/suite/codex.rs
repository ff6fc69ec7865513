//! The real Codex CLI does each kind of work, through each wire protocol. Every test asserts the effect (on disk, or in
//! the final answer) and what the provider received.

#![expect(clippy::unwrap_used, reason = "these functions are the bodies of tests")]

use std::fs;

use base64::Engine as _;
use codex_control::tables::Protocol;
use e2e::home::{PROVIDER_KEY, SandboxHome, binary};
use e2e::provider::{Call, FakeProvider, Script, Step, When, message_text, outline};
use serde_json::{Value, json};

/// Makes of each function a test for each protocol. It is given an empty script that speaks it.
macro_rules! for_each_protocol {
    ($($work:ident),* $(,)?) => {
        for_each_protocol!(@ chat_completions, Script::new, $($work),*);
        for_each_protocol!(@ anthropic_messages, Script::anthropic, $($work),*);
        for_each_protocol!(@ native_responses, Script::responses, $($work),*);
    };
    (@ $protocol:ident, $script:path, $($work:ident),*) => {
        mod $protocol {
            use e2e::home::PROVIDER_KEY;
            use e2e::provider::Script;

            $(
                #[test]
                fn $work() {
                    super::$work($script().key(PROVIDER_KEY));
                }
            )*
        }
    };
}

for_each_protocol![
    plain_text,
    a_shell_call,
    two_parallel_calls,
    a_freeform_patch,
    an_mcp_tool,
    an_image,
    reasoning_is_shown_and_replayed,
    automatic_compaction,
    resuming_the_last_session,
    an_output_schema,
    a_review,
    a_sub_agent,
];

fn plain_text(script: Script) {
    let answer = "Hello! Umlauts äöü, a crab 🦀, \"quotes\" and a\nsecond line.";
    let provider = FakeProvider::start(script.turn(When::user("Say hello."), [Step::text(answer)]));
    let home = SandboxHome::with_provider(&provider);
    let run = home.exec(&["Say hello."]);
    run.assert_clean(&provider);
    assert_eq!(run.answer(), answer);
    let requests = provider.requests();
    assert_eq!(requests.len(), 1, "{}", outline(&requests));
    let request = &requests[0];
    assert_eq!(request.body["model"], "scripted");
    assert_eq!(request.messages()[0]["role"], "system");
    let system = message_text(&request.messages()[0]);
    assert!(system.contains("<permissions instructions>"), "all developer messages are in the one system message");
    assert!(
        request
            .messages()
            .iter()
            .any(|message| message["role"] == "user" && message_text(message).contains("<environment_context>"))
    );
    assert!(
        request.tool_names().contains(&"exec_command") && request.tool_names().contains(&"apply_patch"),
        "{:?}",
        request.tool_names()
    );
    assert!(!request.tool_names().contains(&"web_search"));
    // The token between Codex and us, and the key of ours, each stay on their side.
    let everything = format!("{:?}{}", request.headers, request.body);
    assert!(!everything.contains(&home.token("scripted")));
    let (name, key) = match provider.protocol() {
        Protocol::AnthropicMessages => ("x-api-key", PROVIDER_KEY.to_owned()),
        Protocol::ChatCompletions | Protocol::Responses => ("authorization", format!("Bearer {PROVIDER_KEY}")),
    };
    assert_eq!(request.header(name), Some(key.as_str()));
    let usage = run.events.iter().find(|event| event["type"] == "turn.completed").unwrap();
    assert!(usage["usage"]["input_tokens"].as_u64() > Some(0), "{usage}");
}

fn a_shell_call(script: Script) {
    let provider = FakeProvider::start(
        script
            .turn(
                When::user("Make a file."),
                [Step::text("I make it."), Step::shell("printf made > made.txt && echo done-$((40+2))")],
            )
            .turn(When::tool("done-42"), [Step::text("It is made.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let run = home.exec(&["Make a file."]);
    run.assert_clean(&provider);
    assert_eq!(home.read("work/made.txt"), "made");
    assert_eq!(run.answer(), "It is made.");
    let requests = provider.requests();
    let [_, assistant, tool] = requests[1].messages().last_chunk().unwrap();
    assert_eq!((&assistant["role"], &assistant["content"]), (&json!("assistant"), &json!("I make it.")));
    assert_eq!(assistant["tool_calls"][0]["function"]["name"], "exec_command");
    assert_eq!(tool["tool_call_id"], assistant["tool_calls"][0]["id"]);
    assert!(message_text(tool).contains("Process exited with code 0"), "{tool}");
}

fn two_parallel_calls(script: Script) {
    let provider = FakeProvider::start(
        script
            .turn(
                When::user("Do both."),
                [Step::Calls(vec![
                    Call::shell("echo one > 1.txt; echo first"),
                    Call::shell("echo two > 2.txt; echo second"),
                ])],
            )
            .turn(When::tool("").and("first").and("second"), [Step::text("Both done.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let run = home.exec(&["Do both."]);
    run.assert_clean(&provider);
    assert_eq!((home.read("work/1.txt").as_str(), home.read("work/2.txt").as_str()), ("one\n", "two\n"));
    assert_eq!(run.items("command_execution").len(), 2);
    let results = provider.requests()[1].tool_results();
    assert_eq!(results.len(), 2);
    for ((call, result), word) in results.iter().zip(["first", "second"]) {
        assert!(call.contains(word) && result.contains(word), "the result of {call} is {result}");
    }
}

fn a_freeform_patch(script: Script) {
    let patch = "*** Begin Patch\n*** Add File: new.txt\n+a \"new\" file\n+with a tab\there\n*** Update File: README.md\n@@\n-# A small project\n+# A patched project\n*** End Patch\n";
    let provider = FakeProvider::start(
        script
            .turn(When::user("Patch it."), [Step::Patch(patch.to_owned())])
            .turn(When::tool("Success"), [Step::text("Patched.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let run = home.exec(&["Patch it."]);
    run.assert_clean(&provider);
    assert_eq!(home.read("work/new.txt"), "a \"new\" file\nwith a tab\there\n");
    assert_eq!(home.read("work/README.md"), "# A patched project\n");
    assert_eq!(run.items("file_change").len(), 1, "Codex took it as a change of files\n{}", run.shown());
    let requests = provider.requests();
    // A freeform tool goes up as a function of one string, and comes back the same way.
    let call = requests[1].messages().iter().find_map(|message| message["tool_calls"].get(0)).unwrap();
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments.as_object().unwrap().values().collect::<Vec<_>>(), [&json!(patch)]);
}

fn an_mcp_tool(script: Script) {
    let provider = FakeProvider::start(
        script
            .turn(When::user("Keep a note."), [Step::call("notes/keep", json!({ "note": "buy milk" }))])
            .turn(When::tool("kept: buy milk"), [Step::text("Kept.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let (server, notes) = (binary("mcp-notes"), home.path("notes.txt"));
    let (server, notes) = (server.to_str().unwrap(), notes.to_str().unwrap());
    let config = home.read("codex/config.toml");
    home.write(
        "codex/config.toml",
        &format!("{config}\n[mcp_servers.notes]\ncommand = {server:?}\nargs = [{notes:?}]\n"),
    );
    let run = home.exec(&["Keep a note."]);
    run.assert_clean(&provider);
    assert_eq!(home.read("notes.txt"), "buy milk\n");
    assert_eq!(run.answer(), "Kept.");
    let call = run.items("mcp_tool_call");
    assert_eq!((&call[0]["server"], &call[0]["tool"]), (&json!("notes"), &json!("keep")), "called by its namespace");
    let requests = provider.requests();
    assert!(requests[0].tool_names().iter().any(|name| name.contains("notes") && name.ends_with("keep")));
}

fn an_image(script: Script) {
    /// Eight by eight red pixels.
    const PNG: &str =
        "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mP4z8CAFTEMLQkAKP8/wc53yE8AAAAASUVORK5CYII=";
    let provider = FakeProvider::start(script.turn(When::user("What is this?"), [Step::text("A red pixel.")]));
    let facts = "[[endpoint.model]]\nid = \"scripted\"\ninput = [\"text\", \"image\"]\n";
    let home = SandboxHome::with_provider_and(&provider, facts, "");
    fs::write(home.path("work/pixel.png"), base64::engine::general_purpose::STANDARD.decode(PNG).unwrap()).unwrap();
    let run = home.exec(&["--image", "pixel.png", "--", "What is this?"]);
    run.assert_clean(&provider);
    assert_eq!(run.answer(), "A red pixel.");
    let requests = provider.requests();
    let parts = requests[0].messages().iter().filter_map(|message| message["content"].as_array()).flatten();
    let images: Vec<&str> = parts.filter_map(|part| part["image_url"]["url"].as_str()).collect();
    assert!(matches!(images[..], [url] if url.starts_with("data:image/png;base64,iVBOR")), "{images:?}");
}

fn reasoning_is_shown_and_replayed(script: Script) {
    let provider = FakeProvider::start(
        script
            .turn(When::user("Think."), [Step::reasoning("First I think about it."), Step::shell("echo thought")])
            .turn(When::tool("thought"), [Step::reasoning("Then I am sure."), Step::text("Sure.")]),
    );
    let home = SandboxHome::with_provider_and(&provider, "quirks = [\"replay-reasoning-content\"]\n", "");
    let run = home.exec(&["-c", "hide_agent_reasoning=false", "Think."]);
    run.assert_clean(&provider);
    let shown: Vec<&str> = run.items("reasoning").iter().filter_map(|item| item["text"].as_str()).collect();
    assert_eq!(shown, ["First I think about it.", "Then I am sure."], "{}", run.shown());
    let requests = provider.requests();
    let assistant = requests[1].messages().iter().find(|message| message["role"] == "assistant").unwrap();
    assert_eq!(assistant["reasoning_content"], "First I think about it.");
    // It went through Codex as sealed state, and came back as the provider's own; signatures are checked by it.
    let is_native = provider.protocol() == Protocol::Responses;
    assert_eq!(requests[1].body.to_string().contains("encrypted_content"), is_native);
}

fn automatic_compaction(script: Script) {
    let provider = FakeProvider::start(
        script
            .turn(When::user("Work long."), [Step::usage(19_000, 100), Step::shell("echo step-one")])
            .turn(
                When::user("CONTEXT CHECKPOINT COMPACTION").and("step-one"),
                [Step::text("SUMMARY: step one is done.")],
            )
            .turn(
                When::user("SUMMARY: step one is done.").without("step-one"),
                [Step::text("Finished after compaction.")],
            ),
    );
    let home = SandboxHome::with_provider_and(
        &provider,
        "[[endpoint.model]]\nid = \"scripted\"\ncontext_window = 20000\n",
        "",
    );
    let run = home.exec(&["Work long."]);
    run.assert_clean(&provider);
    assert_eq!(run.answer(), "Finished after compaction.");
    let requests = provider.requests();
    assert_eq!(requests.len(), 3, "{}", outline(&requests));
    match provider.protocol() {
        // A history with calls must come with tools.
        Protocol::AnthropicMessages => assert_eq!(requests[1].body["tool_choice"]["type"], "none"),
        Protocol::ChatCompletions | Protocol::Responses => {
            assert!(requests[1].tool_names().is_empty(), "a compaction offers no tools");
        }
    }
    assert!(requests[2].messages().iter().any(|message| message_text(message).contains("Work long.")));
}

fn resuming_the_last_session(script: Script) {
    let provider = FakeProvider::start(
        script
            .turn(When::user("Remember 7319."), [Step::text("I will.")])
            .turn(When::user("Which number?").and("Remember 7319.").and("I will."), [Step::text("7319.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let first = home.exec(&["Remember 7319."]);
    first.assert_ended_well();
    let run = home.exec(&["resume", "--last", "Which number?"]);
    run.assert_clean(&provider);
    assert_eq!(run.answer(), "7319.");
    let thread = |run: &e2e::codex::Run| {
        run.events.iter().find(|event| event["type"] == "thread.started").unwrap()["thread_id"].clone()
    };
    assert_eq!(thread(&first), thread(&run), "it is the same session, not a new one");
}

fn an_output_schema(script: Script) {
    let answer = r#"{"city":"Bern","people":144000}"#;
    let provider = FakeProvider::start(script.turn(When::user("A city."), [Step::text(answer)]));
    let quirk = match provider.protocol() {
        Protocol::AnthropicMessages => "quirks = [\"output-format\"]\n",
        Protocol::ChatCompletions | Protocol::Responses => "",
    };
    let home = SandboxHome::with_provider_and(&provider, quirk, "");
    let schema = json!({
        "type": "object",
        "properties": { "city": { "type": "string" }, "people": { "type": "integer" } },
        "required": ["city", "people"],
        "additionalProperties": false,
    });
    home.write("schema.json", &schema.to_string());
    let run = home.exec(&["--output-schema", home.path("schema.json").to_str().unwrap(), "A city."]);
    run.assert_clean(&provider);
    assert_eq!(run.answer(), answer);
    assert_eq!(provider.requests()[0].view["response_format"]["json_schema"]["schema"], schema);
}

fn a_review(script: Script) {
    let findings = json!({
        "findings": [{
            "title": "[P1] The total is off by one",
            "body": "`sum` skips the first element.",
            "confidence_score": 0.9, "priority": 1,
            "code_location": { "absolute_file_path": "/project/sum.py", "line_range": { "start": 1, "end": 2 } },
        }],
        "overall_correctness": "patch is incorrect",
        "overall_explanation": "One bug.",
        "overall_confidence_score": 0.9,
    });
    let provider = FakeProvider::start(
        script
            .turn(When::user("Review the current code changes"), [Step::shell("git status --short")])
            .turn(When::tool("sum.py"), [Step::text(&findings.to_string())]),
    );
    let home = SandboxHome::with_provider(&provider);
    home.write("work/sum.py", "def sum(items):\n    return fold(items[1:])\n");
    let run = home.exec(&["review", "--uncommitted"]);
    run.assert_clean(&provider);
    assert!(run.answer().contains("The total is off by one"), "{}", run.shown());
    let requests = provider.requests();
    assert!(message_text(&requests[0].messages()[0]).contains("Review guidelines"), "{}", outline(&requests));
}

/// Beside what `wait_agent` gives, Codex tells the parent of its child's end by a message, when it comes to that: before
/// the child is waited for, with its result, or so late that it costs a request of its own.
fn a_sub_agent(script: Script) {
    let wait = |body: &Value| {
        let messages = body["messages"].as_array().unwrap();
        let result = messages.iter().find(|message| message["role"] == "tool").unwrap();
        let spawned: Value = serde_json::from_str(result["content"].as_str().unwrap()).unwrap();
        vec![Step::call("multi_agent/wait_agent", json!({ "targets": [spawned["agent_id"]], "timeout_ms": 20_000 }))]
    };
    let answer = "The sub-agent has counted.";
    let script = script
        .turn(When::user("Delegate."), [Step::call("multi_agent/spawn_agent", json!({ "message": "Count to three." }))])
        .turn(When::user("Count to three.").without("Delegate."), [Step::shell("echo 1 2 3 > count.txt; echo counted")])
        .turn(When::tool("counted").without("Delegate."), [Step::text("SUB DONE: 1 2 3")])
        .turn(When::any().and("Delegate.").and("agent_id"), [Step::computed(wait)])
        .turn(When::any().and("Delegate.").and("timed_out").and("SUB DONE: 1 2 3"), [Step::text(answer)]);
    let late_notice = script.turn.len();
    let notice = When::user("<subagent_notification>").and("Delegate.").and("SUB DONE: 1 2 3");
    let provider = FakeProvider::start(script.always(notice, [Step::text(answer)]));
    let home = SandboxHome::with_provider(&provider);
    let run = home.exec(&["Delegate."]);
    run.assert_clean(&provider);
    assert_eq!(home.read("work/count.txt"), "1 2 3\n");
    assert_eq!(run.answer(), answer);
    let requests = provider.requests();
    let n_requests = requests.iter().filter(|request| request.turn != Some(late_notice)).count();
    assert_eq!(n_requests, 5, "{}", outline(&requests));
}
