//! Names of answers, and of what is in them.

/// Letters and digits of an id behind its prefix.
const ID_CHARS: usize = 24;

/// A new id: `prefix`, then random letters and digits. It tells things apart and is no secret.
pub(crate) fn new(prefix: &str) -> String {
    let mut id = String::with_capacity(prefix.len() + ID_CHARS);
    id.push_str(prefix);
    id.extend(std::iter::repeat_with(fastrand::alphanumeric).take(ID_CHARS));
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ() {
        let (one, other) = (new("chatcmpl-"), new("chatcmpl-"));
        assert!(one.starts_with("chatcmpl-"));
        assert_eq!(one.len(), "chatcmpl-".len() + ID_CHARS);
        assert_ne!(one, other);
    }
}
