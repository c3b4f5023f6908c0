//! From tokens to text: whole characters, and stop strings that may straddle tokens.

/// Collects the bytes of tokens and gives out whole characters.
///
/// A character may be spread over several tokens; what is incomplete waits. Bytes that can never
/// become a character are given out as U+FFFD.
#[derive(Debug, Default)]
pub struct Utf8Assembler {
    pending: Vec<u8>,
}

impl Utf8Assembler {
    /// Adds the bytes of a token and returns what is complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut out = String::new();
        let mut from = 0;
        loop {
            let rest = &self.pending[from..];
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    from = self.pending.len();
                    break;
                }
                Err(error) => {
                    let good = error.valid_up_to();
                    out.push_str(&String::from_utf8_lossy(&rest[..good]));
                    from += good;
                    match error.error_len() {
                        Some(bad) => {
                            out.push(char::REPLACEMENT_CHARACTER);
                            from += bad;
                        }
                        None => break,
                    }
                }
            }
        }
        self.pending.drain(..from);
        out
    }

    /// The end: what is incomplete will never be whole.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Holds text back while it may be the beginning of a stop string.
#[derive(Debug, Default)]
pub struct StopFilter {
    stops: Vec<String>,
    held: String,
}

/// What the filter lets through.
#[derive(Debug, PartialEq, Eq)]
pub struct Filtered {
    /// Text that can't be part of a stop string any more.
    pub text: String,
    /// The stop string that was found; the text ends before it.
    pub stop: Option<String>,
}

impl StopFilter {
    /// A filter for these strings; empty ones are ignored.
    pub fn new(stops: &[String]) -> StopFilter {
        let stops = stops.iter().filter(|s| !s.is_empty()).cloned().collect();
        StopFilter { stops, held: String::new() }
    }

    /// Adds text and returns what is certain.
    pub fn push(&mut self, text: &str) -> Filtered {
        self.held.push_str(text);
        let found = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at, stop)))
            .min_by_key(|(at, stop)| (*at, stop.len()));
        if let Some((at, stop)) = found {
            let stop = Some(stop.clone());
            let text = self.held[..at].to_owned();
            self.held.clear();
            return Filtered { text, stop };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Filtered { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// The end: what was held back is text after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length in bytes of the longest end of `text` that is a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(i, _)| i)
        .skip(1)
        .filter(|&n| text.ends_with(&stop[..n]))
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assemble(pieces: &[&[u8]]) -> (Vec<String>, String) {
        let mut assembler = Utf8Assembler::default();
        let out = pieces.iter().map(|p| assembler.push(p)).collect();
        (out, assembler.finish())
    }

    #[test]
    fn characters_are_never_cut() {
        let euro = "€".as_bytes();
        assert_eq!(
            assemble(&[b"a", &euro[..1], &euro[1..2], &euro[2..], b"b"]),
            (["a", "", "", "€", "b"].map(String::from).to_vec(), String::new())
        );
        assert_eq!(assemble(&[b"x\xff", b"y"]).0, ["x\u{fffd}", "y"]);
        assert_eq!(assemble(&[b"x\xe2"]), (vec!["x".into()], "\u{fffd}".into()));
    }

    fn filter(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|&s| s.into()).collect();
        let mut filter = StopFilter::new(&stops);
        let mut text = String::new();
        for piece in pieces {
            let filtered = filter.push(piece);
            text.push_str(&filtered.text);
            if filtered.stop.is_some() {
                return (text, filtered.stop);
            }
        }
        text.push_str(&filter.finish());
        (text, None)
    }

    #[test]
    fn stop_strings_straddle_tokens() {
        for (stops, pieces, text, stop) in [
            (vec!["END"], vec!["one E", "N", "D two"], "one ", Some("END")),
            (vec!["END"], vec!["one EN", "ough"], "one ENough", None),
            (vec!["é!"], vec!["café", "!"], "caf", Some("é!")),
            (vec!["b", "abc"], vec!["xabc"], "x", Some("abc")),
            (vec![""], vec!["text"], "text", None),
        ] {
            assert_eq!(filter(&stops, &pieces), (text.into(), stop.map(String::from)));
        }
    }

    #[test]
    fn what_is_certain_comes_at_once() {
        let mut filter = StopFilter::new(&["\n\n".into()]);
        assert_eq!(filter.push("line\n").text, "line");
        assert_eq!(filter.push("next").text, "\nnext");
    }
}
