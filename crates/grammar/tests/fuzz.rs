//! The fuzz body on mutated rules: the same in every run.

mod common;

use common::Random;
use hypura_grammar::fuzz::fuzz_rule;

/// The kind of rule, and its text.
const SEEDS: [(u8, &str); 7] = [
    (
        0,
        r##"{"type":"object","properties":{"a":{"type":"integer","minimum":-3,"maximum":1200},
        "b":{"type":"array","items":{"$ref":"#/$defs/c"},"minItems":1,"maxItems":3},
        "d":{"type":["string","null"],"pattern":"^[a-z]{2,5}$","maxLength":4}},"required":["a"],
        "$defs":{"c":{"anyOf":[{"enum":["x",1,null]},{"const":{"y":[1.5]}},{"$ref":"#"}]}},
        "additionalProperties":false}"##,
    ),
    (
        0,
        r##"{"allOf":[{"type":"object","properties":{"k":{"oneOf":[{"type":"boolean"},{"not":{}}]}}},
        {"patternProperties":{"^k":{"type":"boolean"}},"minProperties":1}],"x-guidance":{}}"##,
    ),
    (0, r##"{"type":"number","multipleOf":0.25,"exclusiveMinimum":-1.5,"maximum":10}"##),
    (0, r##"{"type":"string","format":"date-time","minLength":3}"##),
    (1, r"(?:[a-c]+|\d{2,4}|\p{Lu}?)*/(x|y*z)?"),
    (2, "start: \"<a>\" body | /x+/ start?\nbody: %json {\"type\":\"null\"}\nWORD: /[a-z]+/\n"),
    (2, "start: \"a\"{2,5} b\nb: <[256]> | \"(\" b \")\" | \"\"\n%ignore / /\n"),
];

/// Pieces that are put in here and there.
const PIECES: [&str; 16] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    ",",
    "\\",
    "0",
    "9999999999",
    "-",
    "null",
    "$ref",
    "*",
    "{9}",
    "|",
    "#",
];

fn mutate(random: &mut Random, text: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        let at = random.below(text.len().max(1));
        let len = random.below(20.min(text.len() - at.min(text.len())).max(1));
        match random.below(4) {
            0 => {
                let piece = PIECES[random.below(PIECES.len())].bytes();
                text.splice(at..at, piece);
            }
            1 => drop(text.drain(at..at + len)),
            2 => {
                let again = text[at..at + len].to_vec();
                let to = random.below(text.len().max(1));
                text.splice(to..to, again);
            }
            _ => {
                if let Some(byte) = text.get_mut(at) {
                    *byte = b"0123456789abcxyz\"'(){}[]/\\*+?.,:;|"[random.below(34)];
                }
            }
        }
    }
}

#[test]
fn mutated_rules() {
    let mut random = Random(2028);
    for (kind, text) in SEEDS {
        fuzz_rule(&[&[kind], text.as_bytes()].concat());
        for _ in 0..60 {
            let mut data = vec![kind];
            let mut text = text.as_bytes().to_vec();
            mutate(&mut random, &mut text);
            data.append(&mut text);
            fuzz_rule(&data);
        }
    }
}
