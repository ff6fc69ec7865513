//! What `use`, `restore` and `launch desktop` do with Codex's own `config.toml`, and how they tell about it.

use std::fmt::Write;
use std::path::Path;

use codex_control::EndpointId;
use codex_control::codex_config::{CodexConfig, ConfigError, Key, Outcome, Preview, Redirect};
use codex_control::rpc::EndpointStatus;

use crate::failure::Failure;
use crate::program;

/// Lines of which a difference is told exactly; of a file that differs in more, all old and all new lines are.
const DIFFERENT_LINES_MAX: usize = 2_000;

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::from_hinted(&error)
    }
}

/// What Codex has to be told to use an endpoint that is healthy; `model` instead of the endpoint's own.
pub(crate) fn keys(status: &EndpointStatus, model: Option<&str>) -> Result<Vec<Key>, Failure> {
    let own =
        program::own_path().map_err(|error| Failure::new(format!("this program's own path is unknown: {error}")))?;
    let codexctl = own.to_str().ok_or_else(|| {
        Failure::new(format!(
            "the path of this program, `{}`, is not UTF-8 text, so Codex cannot call it",
            own.display()
        ))
        .hint("install it elsewhere")
    })?;
    let address = status.address.ok_or_else(|| Failure::new(format!("endpoint `{}` has no address", status.id)))?;
    let redirect = Redirect {
        endpoint: &status.id,
        name: &status.name,
        address,
        protocol: status.protocol,
        model: model.or(status.default_model.as_deref()),
        codexctl,
    };
    Ok(redirect.keys())
}

/// What would be changed, as `diff` shows it: only the lines that differ, since the others are nobody's business.
pub(crate) fn difference(preview: &Preview) -> String {
    let (before, after) = (preview.before.as_deref().unwrap_or_default(), preview.after.as_deref().unwrap_or_default());
    if preview.before == preview.after {
        return format!("{} stays as it is\n", preview.path.display());
    }
    let mut text = match (&preview.before, &preview.after) {
        (None, _) => format!("{} (new)\n", preview.path.display()),
        (_, None) => format!("{} (goes)\n", preview.path.display()),
        _ => format!("{}\n", preview.path.display()),
    };
    for (sign, line) in changed_lines(before, after) {
        let _ = writeln!(text, "  {sign} {line}"); // writing to a String cannot fail
    }
    text
}

/// The lines that went and came, in order.
fn changed_lines<'a>(before: &'a str, after: &'a str) -> Vec<(char, &'a str)> {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let n_start = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
    let (old, new) = (&old[n_start..], &new[n_start..]);
    let n_end = old.iter().rev().zip(new.iter().rev()).take_while(|(old, new)| old == new).count();
    let (old, new) = (&old[..old.len() - n_end], &new[..new.len() - n_end]);
    if old.len() + new.len() > DIFFERENT_LINES_MAX {
        return old.iter().map(|line| ('-', *line)).chain(new.iter().map(|line| ('+', *line))).collect();
    }
    // Length of the longest common subsequence of what is left of each, from the end.
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] =
                if old[i] == new[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines = Vec::new();
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(('-', old[i]));
            i += 1;
        } else {
            lines.push(('+', new[j]));
            j += 1;
        }
    }
    lines
}

/// What a change has come to, in one line.
pub(crate) fn told(config: &CodexConfig, outcome: &Outcome) -> String {
    let path = config.path().display();
    let endpoint: Option<&EndpointId> = outcome.in_force.as_ref().and_then(|holder| holder.endpoint.as_ref());
    match (endpoint, outcome.has_changed) {
        (Some(endpoint), true) => format!("{path} points Codex at the endpoint {endpoint}"),
        (Some(endpoint), false) => format!("{path} goes on pointing Codex at the endpoint {endpoint}"),
        (None, true) => format!("{path} is as it was before"),
        (None, false) => format!("{path} holds nothing of ours"),
    }
}

/// Says where an edit is that stood in our place and had to go with it.
pub(crate) fn aside(outcome: &Outcome) -> Option<String> {
    let shown = |path: &Path| format!("`{}`", path.display());
    let paths: Vec<String> = outcome.aside.iter().map(|path| shown(path)).collect();
    (!paths.is_empty())
        .then(|| format!("the file was edited meanwhile; as it was before is kept in {}", paths.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_shown() {
        let preview = |before: Option<&str>, after: Option<&str>| {
            difference(&Preview {
                path: "/c".into(),
                before: before.map(str::to_owned),
                after: after.map(str::to_owned),
            })
        };
        assert_eq!(preview(Some("a\nsecret\nb\n"), Some("a\nsecret\nc\nb\nd\n")), "/c\n  + c\n  + d\n");
        assert_eq!(preview(Some("x\na\ny\n"), Some("x\nb\ny\n")), "/c\n  - a\n  + b\n");
        assert_eq!(preview(Some("1\n2\n3\n4\n"), Some("2\n5\n4\n6\n")), "/c\n  - 1\n  - 3\n  + 5\n  + 6\n");
        assert_eq!(preview(None, Some("a\n")), "/c (new)\n  + a\n");
        assert_eq!(preview(Some("a\n"), None), "/c (goes)\n  - a\n");
        assert_eq!(preview(Some("a\n"), Some("a\n")), "/c stays as it is\n");
        let long = |c: &str| format!("{c}\n").repeat(DIFFERENT_LINES_MAX);
        assert_eq!(preview(Some(&long("a")), Some(&long("b"))).lines().count(), 1 + 2 * DIFFERENT_LINES_MAX);
    }
}
