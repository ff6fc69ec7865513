//! How many descriptors this process may have open.

use rustix::process::{Resource, Rlimit};

/// Raises this process's limit to what the system allows it, and returns it.
///
/// Login sessions start programs with a limit of 1024, for the sake of programs that cannot deal with more; a proxy
/// with two sockets a request reaches that with five hundred streams. Programs started from here inherit the limit.
///
/// `u64::MAX` where there is none. When the system refuses, which it does not, the old limit stays and is returned.
pub fn raise_limit() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current.unwrap_or(u64::MAX);
    }
    match rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_becomes_the_hard_one() {
        let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
        assert_eq!(raise_limit(), hard.unwrap_or(u64::MAX));
        assert_eq!(rustix::process::getrlimit(Resource::Nofile).current, hard);
    }
}
