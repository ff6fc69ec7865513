use proptest::prelude::*;

use super::super::redirect::Redirect;
use super::*;

fn keys() -> Vec<Key> {
    keys_of("zai", Some("glm-4.7"))
}

fn keys_of(endpoint: &str, model: Option<&str>) -> Vec<Key> {
    let endpoint = endpoint.parse().unwrap();
    let address = ([127, 0, 0, 1], 41017).into();
    Redirect { endpoint: &endpoint, name: "Z.AI", address, protocol: None, model, codexctl: "/bin/codexctl" }.keys()
}

/// Our lines, for the keys that a file has not.
fn lines(names: &[&str]) -> String {
    let line = |key: Key| format!("{} = {} {MARK}\n", key.name, key.value);
    keys().into_iter().filter(|key| names.contains(&key.name.as_str())).map(line).collect()
}

const PROVIDER: &str = "model_providers.supervised";
const ALL: [&str; 4] = ["model_provider", "model", "web_search", PROVIDER];

#[track_caller]
fn check_put(text: &str, expected: &str) {
    let (ours, changes) = put(text, &keys()).unwrap();
    assert_eq!(ours, expected);
    assert_eq!(take_out(&ours, &changes).unwrap(), text, "the way back");
    assert_eq!(unremembered(text).unwrap(), None);
}

#[test]
fn an_empty_file_gets_our_lines() {
    check_put("", &lines(&ALL));
    check_put("# only this\n", &format!("{}# only this\n", lines(&ALL)));
    check_put("\u{feff}# mark\n", &format!("\u{feff}{}# mark\n", lines(&ALL)));
    check_put("#:schema none\n\n[a]\nb = 1\n", &format!("#:schema none\n{}\n[a]\nb = 1\n", lines(&ALL)));
}

#[test]
fn lines_stand_behind_the_last_key_of_the_top_level() {
    let text = "# mine\nnotify = [\n  \"a\", # one\n]   # end\nfeatures.x = true\n\n# tables\n[tui]\ntheme = \"x\"\n";
    let expected = text.replace("x = true\n", &format!("x = true\n{}", lines(&ALL)));
    check_put(text, &expected);
}

#[test]
fn values_are_exchanged_in_place() {
    let text = "model   =  'gpt-5.6'\t# the good one\nmodel_provider = \"\"\"\nmine\"\"\"\n[x]\n";
    let ours = lines(&["web_search", PROVIDER]);
    check_put(text, &format!("model   =  \"glm-4.7\"\t# the good one\nmodel_provider = \"supervised\"\n{ours}[x]\n"));
}

#[test]
fn line_ends_stay_what_they_are() {
    let ours = lines(&ALL).replace('\n', "\r\n");
    check_put("a = 1\r\n\r\n[b]\r\n", &format!("a = 1\r\n{ours}\r\n[b]\r\n"));
    let (ours, changes) = put("a = 1", &keys()).unwrap();
    assert_eq!(ours, format!("a = 1\n{}", lines(&ALL)));
    assert_eq!(take_out(&ours, &changes).unwrap(), "a = 1\n");
}

#[test]
fn every_form_of_other_providers_is_met() {
    let value = keys().pop().unwrap().value;
    let rest = lines(&["model_provider", "model", "web_search"]);
    check_put(
        "a = 1\n[model_providers.mine]\nname = \"M\"\n",
        &format!("a = 1\n{}[model_providers.mine]\nname = \"M\"\n", lines(&ALL)),
    );
    check_put("model_providers.mine.name = \"M\"\n", &format!("model_providers.mine.name = \"M\"\n{}", lines(&ALL)));
    check_put(
        "[model_providers] # all\nmine = { name = \"M\" }\n",
        &format!("{rest}[model_providers] # all\nsupervised = {value} {MARK}\nmine = {{ name = \"M\" }}\n"),
    );
    check_put(
        "model_providers = { mine = { name = \"M\" } }\n",
        &format!("model_providers = {{ supervised = {value}, mine = {{ name = \"M\" }} }}\n{rest}"),
    );
    check_put("model_providers = {}\n", &format!("model_providers = {{supervised = {value}}}\n{rest}"));
}

#[test]
fn what_is_not_understood_is_refused() {
    #[track_caller]
    fn check(text: &str, expected: &TextError) {
        assert_eq!(&put(text, &keys()).unwrap_err(), expected);
    }
    check(
        "a = 1\nb = \n",
        &TextError::Broken {
            line: 2,
            column: 5,
            message: "string values must be quoted, expected literal string".into(),
        },
    );
    check("model = { a = 1 }\n[model_providers]\nsupervised = { name = 'me' }", &TextError::Taken);
    check("[model]\n", &TextError::Odd { name: "model".into(), found: "written as table".into() });
    check(
        "model_providers = 3\n",
        &TextError::Odd { name: "model_providers".into(), found: "written as integer".into() },
    );
    assert_eq!(
        decode(b"a = 1\nb = '\xff'\n").unwrap_err(),
        TextError::Broken { line: 2, column: 6, message: "it is not UTF-8 text".into() }
    );
}

#[test]
fn others_edits_stay() {
    let text = "model = \"gpt\" # mine\nweb_search = \"live\"\n[tui]\n";
    let (ours, changes) = put(text, &keys()).unwrap();
    // Another value for a key of ours, a comment behind a line of ours, lines between, sections at the end.
    let edited = ours
        .replace("web_search = \"disabled\"", "web_search = \"cached\"")
        .replace(&format!("supervised\" {MARK}"), "supervised\" # hello")
        .replace("# mine", "# changed")
        + "# more\n[projects.\"/p\"]\ntrust_level = \"trusted\"\n";
    assert_eq!(
        take_out(&edited, &changes).unwrap(),
        "model = \"gpt\" # changed\nweb_search = \"cached\"\n# hello\n[tui]\n# more\n[projects.\"/p\"]\ntrust_level = \"trusted\"\n"
    );
}

#[test]
fn a_model_chosen_at_our_provider_goes_with_it_and_stays_without() {
    let (ours, changes) = put("model = \"gpt\"\n", &keys()).unwrap();
    let chosen = ours.replace("glm-4.7", "glm-5");
    assert_eq!(take_out(&chosen, &changes).unwrap(), "model = \"gpt\"\n");
    let left = chosen.replace("\"supervised\"", "\"mine\"");
    assert_eq!(take_out(&left, &changes).unwrap(), format!("model = \"glm-5\"\nmodel_provider = \"mine\" {MARK}\n"));
}

#[test]
fn our_provider_goes_in_every_form() {
    let (_, changes) = put("", &keys()).unwrap();
    for (text, expected) in [
        ("model_providers.supervised.name = 'a'\nmodel_providers.supervised.auth.args = []\nb = 1\n", "b = 1\n"),
        (
            "[model_providers.supervised]\nname = 'a' # c\n# d\n\n[model_providers.supervised.auth]\nargs = [\n1]\n[x]\ny = 1\n",
            "# c\n# d\n\n[x]\ny = 1\n",
        ),
        (
            "[model_providers.supervised.auth]\na = 1\n[x]\n[model_providers.supervised]\nname = 'a'\n[[y]]\n",
            "[x]\n[[y]]\n",
        ),
        (
            "[model_providers.other]\nname = 'b'\n[model_providers.supervised]\n",
            "[model_providers.other]\nname = 'b'\n",
        ),
        (
            "model_providers = { a = { name = 'b' }, supervised = { name = 'c' } }\n",
            "model_providers = { a = { name = 'b' } }\n",
        ),
        ("[[model_providers.supervised]]\na = 1\n[[model_providers.supervised]]\n", ""),
    ] {
        assert_eq!(take_out(text, &changes).unwrap(), expected);
    }
}

#[test]
fn what_nobody_remembers_is_recognised() {
    let text = "a = 1\n[tui]\n";
    let (ours, _) = put(text, &keys()).unwrap();
    let changes = unremembered(&ours).unwrap().unwrap();
    assert_eq!(take_out(&ours, &changes).unwrap(), text);
    // A chosen provider that is not there is ours, too, and so is the model.
    let changes =
        unremembered("model = \"x\"\nmodel_provider = \"supervised\"\nweb_search = \"live\"\n").unwrap().unwrap();
    assert_eq!(
        take_out("model = \"x\"\nmodel_provider = \"supervised\"\nweb_search = \"live\"\n", &changes).unwrap(),
        "web_search = \"live\"\n"
    );
    let own = "model_provider = \"supervised\"\n[model_providers.supervised]\nname = \"Mine\"\n";
    assert_eq!(unremembered(own).unwrap_err(), TextError::Taken);
    assert!(is_redirected(own) && !is_redirected(text) && !is_redirected("x = "));
}

/// A piece of a file; `true` for one that has to stand above all tables.
fn piece() -> impl Strategy<Value = (bool, String)> {
    let key = "k[a-z]{1,6}";
    let comment = prop_oneof![Just(String::new()), " *# [ -~é]{0,12}"];
    let value = prop_oneof![
        "[0-9]{1,3}".prop_filter("no leading zero", |text| text == "0" || !text.starts_with('0')),
        "\"[a-z #=\\[\\]]{0,8}\"",
        Just("\"\"\"a\n[model]\n# b\n\"\"\"".to_owned()),
        Just("[\n 1, # x\n 2 ]".to_owned()),
        Just("{ a = 1, b = { c = [] } }".to_owned()),
        Just("nan".to_owned()),
    ];
    let own = prop_oneof![
        Just("model = \"gpt-5.6\"".to_owned()),
        Just("\"model_provider\"  = 'openai'".to_owned()),
        Just("web_search='''live'''".to_owned()),
        Just("model_providers.mine.name = \"M\"".to_owned()),
    ];
    let provider = prop_oneof![
        Just("[model_providers.other]\nname = \"O\"".to_owned()),
        Just("[ model_providers . third ] # t\nname = \"T\"\n[model_providers.third.auth]\ncommand = \"c\"".to_owned()),
    ];
    prop_oneof![
        (key, value, comment.clone()).prop_map(|(key, value, comment)| (true, format!("{key} = {value}{comment}"))),
        own.prop_map(|own| (true, own)),
        comment.prop_map(|comment| (true, comment.trim().to_owned())),
        ("t[a-z]{1,6}", key, "[0-9]").prop_map(|(table, key, n)| (false, format!("[{table}.x]\n{key}=1{n}"))),
        provider.prop_map(|provider| (false, provider)),
    ]
}

/// Files that make sense, in every order and with either line end.
fn file() -> impl Strategy<Value = String> {
    (prop::collection::vec(piece(), 0..10), any::<bool>(), any::<bool>(), any::<bool>()).prop_filter_map(
        "sound",
        |(mut pieces, windows, last_line_ends, marked)| {
            pieces.sort_by_key(|(is_top, _)| !is_top);
            let lines: Vec<String> = pieces.into_iter().map(|(_, line)| line).collect();
            let mut text = lines.join("\n");
            if last_line_ends && !text.is_empty() {
                text.push('\n');
            }
            if windows {
                text = text.replace('\n', "\r\n");
            }
            if marked {
                text.insert(0, '\u{feff}');
            }
            table(&text).is_ok().then_some(text)
        },
    )
}

/// What another program does to a file: `DocumentMut` keeps the form, `to_string` of the values does not.
fn rewritten(text: &str, kind: u8) -> String {
    let mut table = table(text).unwrap();
    match kind {
        0 => format!("{text}\n[foreign.table]\nadded = true\n"),
        1 => format!("{text}# a comment at the end"),
        2 => {
            table.insert("foreign".to_owned(), toml::Value::Integer(7));
            toml::to_string(&table).unwrap()
        }
        3 => toml::to_string_pretty(&table).unwrap(),
        _ => {
            let mut document: toml_edit::DocumentMut = text.parse().unwrap();
            document["foreign"]["x"] = toml_edit::value("y");
            document.to_string()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_way_leads_back(text in file(), model in prop_oneof![Just(None), Just(Some("glm-4.7"))]) {
        let (ours, changes) = put(&text, &keys_of("zai", model)).unwrap();
        let back = take_out(&ours, &changes).unwrap();
        // A last line that had no end may have got one.
        prop_assert_eq!(back.trim_end(), text.trim_end());
        prop_assert!(is_redirected(&ours));
        // Every line of theirs is still there, in their order.
        let mut lines = ours.trim_start_matches('\u{feff}').lines();
        let theirs = text.trim_start_matches('\u{feff}').lines();
        let kept = theirs.filter(|line| !["model", "\"model_p", "web_s"].iter().any(|own| line.starts_with(own)));
        for line in kept {
            prop_assert!(lines.any(|found| found == line), "{line:?} is not in {ours:?}");
        }
    }

    #[test]
    fn a_foreign_rewrite_keeps_what_is_foreign_and_nothing_of_ours(text in file(), kind in 0..5u8) {
        let (ours, changes) = put(&text, &keys()).unwrap();
        let edited = rewritten(&ours, kind);
        let back = take_out(&edited, &changes).unwrap();
        prop_assert!(!back.contains("supervised"), "{back}");
        prop_assert_eq!(meaning(&table(&back).unwrap()), meaning(&table(&rewritten(&text, kind)).unwrap()));
    }

    #[test]
    fn no_text_is_too_odd(text in "[ -~\n\r\t\u{feff}é=\\[\\]{}\"#.]{0,60}") {
        if let Ok((ours, changes)) = put(&text, &keys()) {
            take_out(&ours, &changes).unwrap();
        }
        let _ = unremembered(&text);
    }
}
