//! Tokens and text, by llama.cpp.

use std::ffi::{CStr, c_char};

use llama_cpp_sys_2 as sys;

/// The number of a token in the model's vocabulary.
pub type Token = i32;

/// The vocabulary of a loaded model.
#[derive(Clone, Copy)]
pub struct Vocab<'a> {
    pub(crate) ptr: *const sys::llama_vocab,
    pub(crate) _model: std::marker::PhantomData<&'a ()>,
}

impl Vocab<'_> {
    /// How many tokens there are.
    pub fn n_tokens(&self) -> usize {
        // SAFETY: the vocabulary lives as long as its model, which `'a` borrows.
        usize::try_from(unsafe { sys::llama_vocab_n_tokens(self.ptr) }).unwrap_or(0)
    }

    /// Turns text into tokens. `add_special` adds what the model wants around a text (BOS);
    /// `parse_special` reads `<|im_start|>` and the like as control tokens.
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<Token> {
        let len = i32::try_from(text.len()).unwrap_or(i32::MAX);
        let mut tokens = vec![0; text.len() + 8];
        loop {
            let room = i32::try_from(tokens.len()).unwrap_or(i32::MAX);
            // SAFETY: `text` holds `len` bytes and `tokens` has `room` places.
            let n = unsafe {
                sys::llama_tokenize(
                    self.ptr,
                    text.as_ptr().cast::<c_char>(),
                    len,
                    tokens.as_mut_ptr(),
                    room,
                    add_special,
                    parse_special,
                )
            };
            match usize::try_from(n) {
                Ok(n) => {
                    tokens.truncate(n);
                    return tokens;
                }
                Err(_) => tokens.resize(usize::try_from(n.unsigned_abs()).unwrap_or(0), 0),
            }
        }
    }

    /// The bytes of one token; they need not be whole characters. `special` also renders control
    /// tokens.
    pub fn piece(&self, token: Token, special: bool) -> Vec<u8> {
        let mut bytes = vec![0u8; 32];
        loop {
            let room = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
            // SAFETY: `bytes` has `room` bytes; an unknown token gives an empty piece.
            let n = unsafe {
                sys::llama_token_to_piece(
                    self.ptr,
                    token,
                    bytes.as_mut_ptr().cast::<c_char>(),
                    room,
                    0,
                    special,
                )
            };
            match usize::try_from(n) {
                Ok(n) => {
                    bytes.truncate(n);
                    return bytes;
                }
                Err(_) => bytes.resize(usize::try_from(n.unsigned_abs()).unwrap_or(0), 0),
            }
        }
    }

    /// The bytes of a token that may be none, control tokens written out; `None` if it is none.
    pub fn checked_piece(&self, token: Token) -> Option<Vec<u8>> {
        let is_known = usize::try_from(token).is_ok_and(|id| id < self.n_tokens());
        is_known.then(|| self.piece(token, true))
    }

    /// Whether tokens stand for just these bytes, control tokens written out.
    pub fn spells(&self, tokens: &[Token], text: &[u8]) -> bool {
        let mut rest = text;
        for &token in tokens {
            match rest.strip_prefix(self.piece(token, true).as_slice()) {
                Some(after) => rest = after,
                None => return false,
            }
        }
        rest.is_empty()
    }

    /// Whether tokens can be what a text was turned into: the vocabulary has all of them, and they
    /// stand for the text, but for a beginning-of-text token and for spaces, which some tokenizers
    /// add.
    pub fn could_be(&self, tokens: &[Token], text: &[u8]) -> bool {
        let n_tokens = self.n_tokens();
        let is_known = |token: &Token| usize::try_from(*token).is_ok_and(|id| id < n_tokens);
        if !tokens.iter().all(is_known) {
            return false;
        }
        // SAFETY: the vocabulary lives as long as the model.
        let bos = unsafe { sys::llama_vocab_bos(self.ptr) };
        let tokens = tokens.strip_prefix(&[bos]).unwrap_or(tokens);
        let said = tokens.iter().flat_map(|&token| self.piece(token, true));
        said.filter(|byte| *byte != b' ').eq(text.iter().copied().filter(|byte| *byte != b' '))
    }

    /// Whether the token is a mark (`<|im_start|>` and the like) and no text.
    pub fn is_control(&self, token: Token) -> bool {
        // SAFETY: as in `n_tokens`.
        unsafe { sys::llama_vocab_is_control(self.ptr, token) }
    }

    /// Whether text is always cut before and after this token: what stands on either side of it is
    /// tokenized apart (`llama_vocab::impl::tokenizer_st_partition`).
    pub fn is_boundary(&self, token: Token) -> bool {
        const CUT: u32 = sys::LLAMA_TOKEN_ATTR_CONTROL
            | sys::LLAMA_TOKEN_ATTR_USER_DEFINED
            | sys::LLAMA_TOKEN_ATTR_UNKNOWN;
        if !usize::try_from(token).is_ok_and(|id| id < self.n_tokens()) {
            return false;
        }
        // SAFETY: the token is one of the vocabulary.
        let attributes = unsafe { sys::llama_vocab_get_attr(self.ptr, token) };
        attributes & CUT != 0
    }

    /// The token that ends a text, if the model has one; -1 if not.
    pub fn end_of_text(&self) -> Token {
        // SAFETY: as in `n_tokens`.
        unsafe {
            let turn = sys::llama_vocab_eot(self.ptr);
            if turn >= 0 { turn } else { sys::llama_vocab_eos(self.ptr) }
        }
    }

    /// Whether the token ends a generation (end of text, end of turn).
    pub fn is_end_of_generation(&self, token: Token) -> bool {
        // SAFETY: as in `n_tokens`.
        unsafe { sys::llama_vocab_is_eog(self.ptr, token) }
    }

    /// The text of the beginning-of-text token, if the model has one.
    pub fn bos_text(&self) -> Option<String> {
        // SAFETY: as in `n_tokens`.
        self.text(unsafe { sys::llama_vocab_bos(self.ptr) })
    }

    /// The text of the end-of-text token, if the model has one.
    pub fn eos_text(&self) -> Option<String> {
        // SAFETY: as in `n_tokens`.
        self.text(unsafe { sys::llama_vocab_eos(self.ptr) })
    }

    /// Whether the model wants the beginning-of-text token in front of a text.
    pub fn adds_bos(&self) -> bool {
        // SAFETY: as in `n_tokens`.
        unsafe { sys::llama_vocab_get_add_bos(self.ptr) }
    }

    fn text(&self, token: Token) -> Option<String> {
        if token < 0 {
            return None;
        }
        // SAFETY: the token comes from the vocabulary itself; the string lives as long as it.
        let text = unsafe { CStr::from_ptr(sys::llama_vocab_get_text(self.ptr, token)) };
        Some(text.to_string_lossy().into_owned())
    }
}
