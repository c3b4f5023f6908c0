//! What a session may be called.

use std::fmt;
use std::str::FromStr;

/// Characters of a name at most.
pub const NAME_LEN_MAX: usize = 64;

/// The name of a session: 1 to [`NAME_LEN_MAX`] of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`, not
/// beginning with `.` or `-`. As the name of a file it stays in its folder, is not hidden, and is
/// no option of a command. Where the file system ignores case, so do sessions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionName(String);

/// A session can't be called so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a session can't be called {name:?}; use 1 to {NAME_LEN_MAX} of the characters A-Z, a-z, 0-9, \
     '.', '_' and '-', and begin with none of '.' and '-'"
)]
#[non_exhaustive]
pub struct NameError {
    /// What was asked for, cut if it is long.
    pub name: String,
}

impl SessionName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`NameError`] says what a name may be.
    pub fn parse(name: &str) -> Result<SessionName, NameError> {
        let is_allowed =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let fits = (1..=NAME_LEN_MAX).contains(&name.len());
        if fits && name.bytes().all(is_allowed) && !name.starts_with(['.', '-']) {
            return Ok(SessionName(name.to_owned()));
        }
        Err(NameError { name: name.chars().take(NAME_LEN_MAX + 1).collect() })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SessionName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<SessionName, NameError> {
        SessionName::parse(name)
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_folder() {
        let long = "x".repeat(NAME_LEN_MAX);
        for good in ["a", "My-chat_2.b", "7", "_", "a..b", "a.session", long.as_str()] {
            assert_eq!(SessionName::parse(good).expect("a name").as_str(), good);
        }
        let longer = "x".repeat(NAME_LEN_MAX + 1);
        for bad in
            ["", ".", "..", ".a", "-a", "a/b", "../a", "a b", "a\0", "a\n", "ä", longer.as_str()]
        {
            assert!(SessionName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_endless_name_is_cut_in_the_message() {
        let error = SessionName::parse(&"y".repeat(1 << 20)).expect_err("too long");
        assert!(error.to_string().len() < 300, "{error}");
    }
}
