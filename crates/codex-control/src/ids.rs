//! Identifiers that a person types and that must not be mistaken for each other.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest endpoint id: it becomes part of file names and of unit names.
pub const ENDPOINT_ID_BYTES_MAX: usize = 40;

/// The name of an endpoint: kebab-case, e.g. `zai` or `my-openrouter-2`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EndpointId(String);

/// Why a text is no endpoint id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an endpoint id: use 1 to {ENDPOINT_ID_BYTES_MAX} lower-case letters, digits and single hyphens, beginning with a letter, e.g. `zai` or `my-provider-2`"
)]
pub struct InvalidEndpointId(pub String);

impl EndpointId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EndpointId {
    type Err = InvalidEndpointId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let well_formed = text.len() <= ENDPOINT_ID_BYTES_MAX
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && !text.ends_with('-')
            && !text.contains("--")
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if well_formed { Ok(Self(text.to_owned())) } else { Err(InvalidEndpointId(text.to_owned())) }
    }
}

impl TryFrom<String> for EndpointId {
    type Error = InvalidEndpointId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<EndpointId> for String {
    fn from(id: EndpointId) -> Self {
        id.0
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_kebab_case() {
        for good in ["zai", "z", "my-openrouter-2", "a1"] {
            assert_eq!(good.parse::<EndpointId>().map(String::from), Ok(good.to_owned()));
        }
        let long = "a".repeat(ENDPOINT_ID_BYTES_MAX + 1);
        for bad in ["", "Z", "-a", "a-", "a--b", "1a", "a_b", "a/b", "..", "ä", &long] {
            assert_eq!(bad.parse::<EndpointId>(), Err(InvalidEndpointId(bad.to_owned())), "{bad}");
        }
    }
}
