//! An answer as it grows: tokens in, whole characters out, up to its end.

use hypura_llama::Token;

use crate::generate::{Finish, GenerateRequest};
use crate::text::{StopFilter, Utf8Assembler};

/// The answer as it grows.
pub(crate) struct Answer {
    max_tokens: usize,
    utf8: Utf8Assembler,
    filter: StopFilter,
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    stopped: bool,
}

impl Answer {
    pub(crate) fn new(request: &GenerateRequest) -> Answer {
        Answer {
            max_tokens: request.max_tokens.unwrap_or(usize::MAX),
            utf8: Utf8Assembler::default(),
            filter: StopFilter::new(&request.stop),
            text: String::new(),
            tokens: Vec::new(),
            stopped: false,
        }
    }

    /// Adds a token with its bytes. Returns the text that is certain now, and the end if this is it.
    pub(crate) fn push(&mut self, token: Token, piece: &[u8]) -> (String, Option<Finish>) {
        if self.max_tokens == 0 {
            return (String::new(), Some(Finish::Length));
        }
        self.tokens.push(token);
        let whole = self.utf8.push(piece);
        let filtered = self.filter.push(&whole);
        self.text.push_str(&filtered.text);
        let finish = match filtered.stop {
            Some(stop) => {
                self.stopped = true;
                Some(Finish::Stop(stop))
            }
            None => (self.tokens.len() >= self.max_tokens).then_some(Finish::Length),
        };
        (filtered.text, finish)
    }

    /// The end: what was held back. Call it once.
    pub(crate) fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        let rest = self.utf8.finish();
        let filtered = self.filter.push(&rest);
        let mut last = filtered.text;
        if filtered.stop.is_none() {
            last.push_str(&self.filter.finish());
        }
        self.text.push_str(&last);
        last
    }
}
