//! The words by which a model is asked to think more or less, and the nearest of those that a provider takes.
//!
//! Codex passes on whatever word it is configured with. Providers agree on some of them and refuse the rest.

/// The scale, from none to the most.
pub(crate) const SCALE: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// Whatever the model does by itself; some providers know this word and `none`, and nothing between.
pub(crate) const DEFAULT: &str = "default";

/// The one of `taken` that comes nearest to `wanted`: the same, the next below, or else the least. Who wants the model to
/// think is not given `none`; `None` when there is nothing to say.
pub(crate) fn nearest<'t>(wanted: &str, taken: &'t [String]) -> Option<&'t str> {
    let wanted = if wanted == "ultra" { "max" } else { wanted };
    if let Some(same) = taken.iter().find(|word| *word == wanted) {
        return Some(same);
    }
    let wanted = rank(wanted)?;
    let ranked = || taken.iter().filter_map(|word| Some((rank(word)?, word.as_str())));
    let fitting = || ranked().filter(|(rank, _)| wanted == 0 || *rank > 0);
    let below = fitting().filter(|(rank, _)| *rank < wanted).max();
    let best = below.or_else(|| fitting().min()).map(|(_, word)| word);
    best.or_else(|| taken.iter().map(String::as_str).find(|word| *word == DEFAULT))
}

fn rank(word: &str) -> Option<usize> {
    SCALE.iter().position(|known| *known == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found() {
        let rows: [(&str, &[&str], Option<&str>); 13] = [
            ("high", &["low", "medium", "high"], Some("high")),
            ("xhigh", &["low", "medium", "high"], Some("high")),
            ("ultra", &["low", "max"], Some("max")),
            ("medium", &["low", "high"], Some("low")),
            ("low", &["high", "max"], Some("high")),
            ("low", &["none", "high"], Some("high")),
            ("minimal", &["none", "low"], Some("low")),
            ("none", &["minimal", "low"], Some("minimal")),
            ("none", &["none", "default"], Some("none")),
            ("high", &["none", "default"], Some("default")),
            ("high", &["none"], None),
            ("much", &["low"], None),
            ("much", &["much"], Some("much")),
        ];
        for (wanted, taken, expected) in rows {
            let taken: Vec<String> = taken.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(nearest(wanted, &taken), expected, "{wanted} of {taken:?}");
        }
    }
}
