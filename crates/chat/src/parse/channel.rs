//! The headers of gpt-oss ("harmony"): who speaks to whom, in which channel.
//!
//! `<|start|>assistant<|channel|>analysis<|message|>`, `commentary to=functions.NAME
//! <|constrain|>json` or `final`; the recipient may also stand before the channel. See OpenAI's
//! "harmony response format".

/// Ends a header.
pub(super) const MESSAGE: &str = "<|message|>";
/// Bytes of a header at most; what is longer is none.
pub(super) const HEADER_BYTES_MAX: usize = 512;

/// What follows a header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Channel {
    Reasoning,
    Content,
    /// The arguments of a call.
    Call(String),
}

/// Reads a header, without the mark that ends it.
pub(super) fn read(header: &str, has_tools: bool) -> Channel {
    let word = |text: &str| {
        let end = text.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(text.len());
        text.get(..end).unwrap_or_default().to_owned()
    };
    let recipient = header.split_once("to=").map(|(_, rest)| word(rest));
    let channel = header.split_once("<|channel|>").map(|(_, rest)| word(rest));
    let function = recipient.as_deref().and_then(|to| to.strip_prefix("functions."));
    match function {
        Some(name) if has_tools && !name.is_empty() => Channel::Call(name.to_owned()),
        _ if channel.as_deref() == Some("analysis") => Channel::Reasoning,
        _ => Channel::Content,
    }
}

/// Whether the prompt ends in the midst of a header, and what of it is there.
pub(super) fn opened(prompt: &str) -> Option<String> {
    let (_, header) = prompt.rsplit_once("<|start|>")?;
    let is_short = header.len() <= HEADER_BYTES_MAX;
    (is_short && header.starts_with("assistant") && !header.contains("<|end|>"))
        .then(|| header.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_what_follows() {
        let call = || Channel::Call("f".to_owned());
        let cases = [
            ("assistant<|channel|>analysis", Channel::Reasoning),
            ("<|channel|>final", Channel::Content),
            ("<|channel|>commentary", Channel::Content),
            ("<|channel|>commentary to=functions.f <|constrain|>json", call()),
            (" to=functions.f<|channel|>commentary json", call()),
            ("<|channel|>analysis to=functions.f<|constrain|>json", call()),
            ("<|channel|>analysis to=browser.open", Channel::Reasoning),
        ];
        for (header, expected) in cases {
            assert_eq!(read(header, true), expected, "{header}");
        }
        assert_eq!(read("<|channel|>commentary to=functions.f", false), Channel::Content);
    }
}
