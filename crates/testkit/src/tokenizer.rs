//! The vocabulary of made-up models: byte-level BPE, as GPT-2 has it.

use hypura_gguf::{Array, Metadata};

/// Smallest vocabulary: the bytes, the merges, the specials.
pub(crate) const N_VOCAB_MIN: u32 = 320;

/// Pairs that are merged into one token, so that tokenizing is more than looking up bytes. "Ġ" is
/// how a space is written in such a vocabulary.
const MERGES: &[(&str, &str)] = &[
    ("Ġ", "t"),
    ("h", "e"),
    ("Ġt", "he"),
    ("i", "n"),
    ("Ġ", "a"),
    ("e", "r"),
    ("o", "n"),
    ("in", "g"),
    ("Ġa", "n"),
    ("Ġan", "d"),
];
const SPECIALS: &[&str] = &["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + \
    '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}\
    {{ '<|im_start|>assistant\n' }}{% endif %}";

/// llama.cpp's `LLAMA_TOKEN_TYPE_NORMAL` and `_CONTROL`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// Adds the vocabulary to a model's metadata.
///
/// Tokens 0 to 255 are the bytes, then come merges and specials. What is left of `n_vocab` (at
/// least [`N_VOCAB_MIN`]) are words of letters that no text is ever tokenized to, but that a random
/// model can say.
pub(crate) fn add(metadata: &mut Metadata, n_vocab: u32) {
    let mut tokens: Vec<String> = byte_characters().map(String::from).collect();
    tokens.extend(MERGES.iter().map(|(left, right)| format!("{left}{right}")));
    let n_normal = tokens.len();
    let specials = u32::try_from(n_normal).unwrap_or(0)..;
    let id = |name: &str| {
        let place = SPECIALS.iter().position(|special| *special == name).unwrap_or(0);
        specials.clone().nth(place).unwrap_or(0)
    };
    let (end_of_text, end_of_turn) = (id("<|endoftext|>"), id("<|im_end|>"));
    tokens.extend(SPECIALS.iter().map(ToString::to_string));
    let filler = n_vocab.max(N_VOCAB_MIN).saturating_sub(u32::try_from(tokens.len()).unwrap_or(0));
    tokens.extend((0..filler).map(filler_word));

    let types = (0..tokens.len()).map(|i| {
        let is_special = i >= n_normal && i < n_normal + SPECIALS.len();
        if is_special { CONTROL } else { NORMAL }
    });
    let types = Array::I32(types.collect());
    let merges = MERGES.iter().map(|(left, right)| format!("{left} {right}"));
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", "qwen2");
    metadata.insert("tokenizer.ggml.tokens", Array::String(tokens.iter().collect()));
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata.insert("tokenizer.ggml.merges", Array::String(merges.collect()));
    metadata.insert("tokenizer.ggml.bos_token_id", end_of_text);
    metadata.insert("tokenizer.ggml.eos_token_id", end_of_turn);
    metadata.insert("tokenizer.ggml.padding_token_id", end_of_text);
    metadata.insert("tokenizer.ggml.add_bos_token", false);
    metadata.insert("tokenizer.chat_template", CHAT_TEMPLATE);
}

/// The character that stands for each byte, in the order of the bytes: printable ones for
/// themselves, the others shifted behind Latin-1 (`bytes_to_unicode` of GPT-2).
fn byte_characters() -> impl Iterator<Item = char> {
    let mut shifted = 256..;
    (0..=255u32).map(move |byte| {
        let is_printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if is_printable { byte } else { shifted.next().unwrap_or(byte) };
        char::from_u32(code).unwrap_or(' ')
    })
}

/// The `i`-th word, in letters that count: " qa", " qb", ... " qba", ...
fn filler_word(i: u32) -> String {
    let mut digits = Vec::new();
    let mut rest = i;
    loop {
        digits.push(char::from(b'a' + u8::try_from(rest % 26).unwrap_or(0)));
        rest /= 26;
        if rest == 0 {
            break;
        }
    }
    format!("Ġq{}", digits.iter().rev().collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_distinct_and_specials_are_where_the_ids_say() {
        for n_vocab in [N_VOCAB_MIN, 32_768] {
            let mut metadata = Metadata::new();
            add(&mut metadata, n_vocab);
            let tokens = metadata.array("tokenizer.ggml.tokens").unwrap().as_strings().unwrap();
            assert_eq!(tokens.len(), n_vocab as usize);
            assert_eq!(metadata.array("tokenizer.ggml.token_type").unwrap().len(), tokens.len());
            let mut all: Vec<&[u8]> = tokens.iter().collect();
            let special = |key: &str| all[metadata.u32(key).unwrap() as usize].to_vec();
            assert_eq!(special("tokenizer.ggml.bos_token_id"), b"<|endoftext|>");
            assert_eq!(special("tokenizer.ggml.eos_token_id"), b"<|im_end|>");
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), n_vocab as usize);
        }
    }
}
