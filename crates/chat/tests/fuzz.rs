//! The fuzz bodies on seeded inputs: pieces of what models and templates write, in any order.

use hypura_chat::{fuzz_parser, fuzz_template};

const ROUNDS: u64 = 6_000;
const TEMPLATE_ROUNDS: u64 = 400;

const ANSWER: &[&str] = &[
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "\n",
    " ",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"name\"",
    "\"arguments\"",
    "\"f\"",
    "\"a\"",
    "{\"name\": \"f\", \"arguments\": {\"a\": ",
    "1",
    "\"x\\\"y\"",
    "null",
    "<function=f>",
    "</function>",
    "<parameter=a>",
    "</parameter>",
    "f(",
    "a=1",
    ")",
    "'",
    "[TOOL_CALLS]",
    "[ARGS]",
    "f",
    "get_b",
    "<|channel|>",
    "<|message|>",
    "<|start|>assistant",
    "<|end|>",
    "commentary to=functions.f",
    "analysis",
    "<|call|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "function<｜tool▁sep｜>f",
    "<｜tool▁sep｜>",
    "\n```json\n",
    "```",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "<minimax:tool_call>",
    "<invoke name=\"f\">",
    "</invoke>",
    "<parameter name=\"a\">",
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>functions.f:0",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    ">>>",
    "all\n",
    "<|python_tag|>",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    "<|im_end|>",
    "</s>",
    "é",
    "<",
    "<|",
    "Hello",
    "<|tool_call>call:f{a:<|\"|>x<|\"|>}<tool_call|>",
    "<|START_ACTION|>",
    "<|END_ACTION|>",
];

const TEMPLATE: &[&str] = &[
    "{{",
    "}}",
    "{%",
    "%}",
    "{%-",
    "-%}",
    "{#",
    "#}",
    " ",
    "\n",
    "if",
    "else",
    "endif",
    "for",
    "x in messages",
    "endfor",
    "set x =",
    "endset",
    "macro f(a)",
    "endmacro",
    "call",
    "f(",
    ")",
    "x",
    "messages",
    "[0]",
    "['content']",
    ".content",
    "|trim",
    "|tojson",
    "|join(',')",
    "|length",
    "+",
    "~",
    "*",
    "-",
    "%",
    "//",
    "1",
    "2.5",
    "'a'",
    "'%s'",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "==",
    "is defined",
    "is string",
    "not",
    "and",
    "namespace(a=1)",
    "x.a",
    "range(9)",
    "|list",
    ".items()",
    ".split('a')",
    "[::-1]",
    "raw",
    "endraw",
    "{% for m in messages %}{{ m.role }}{% endfor %}",
];

/// A sequence of numbers that looks random (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(below).unwrap()).unwrap()
    }

    fn text(&mut self, words: &[&str], most: usize) -> String {
        (0..self.next(most)).map(|_| words[self.next(words.len())]).collect()
    }
}

#[test]
fn what_a_model_says_never_depends_on_how_it_is_cut() {
    for seed in 0..ROUNDS {
        let mut numbers = Numbers(seed);
        let mut data = vec![
            u8::try_from(numbers.next(256)).unwrap(),
            u8::try_from(numbers.next(256)).unwrap(),
        ];
        data.extend(numbers.text(ANSWER, 30).into_bytes());
        fuzz_parser(&data);
    }
}

#[test]
fn any_template_renders_or_fails() {
    for seed in 0..TEMPLATE_ROUNDS {
        fuzz_template(Numbers(seed).text(TEMPLATE, 25).as_bytes());
    }
}
