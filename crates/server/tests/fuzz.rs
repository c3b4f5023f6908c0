//! The fuzz bodies on mutated requests: the same in every run.

use hypura_server::fuzz::{fuzz_anthropic, fuzz_ollama, fuzz_openai};

/// Requests with most fields in them.
const SEEDS: [&str; 6] = [
    r#"{"model":"m","messages":[{"role":"user","content":"a","images":[]},{"role":"assistant","content":"","thinking":"t","tool_calls":[{"function":{"name":"f","arguments":{"x":1}}}]},{"role":"tool","content":"c","tool_name":"f"}],"prompt":"p","suffix":"s","raw":true,"context":[1,2],"input":["a"],"format":{"type":"object"},"options":{"temperature":0.5,"stop":["a"],"num_ctx":64,"num_predict":-1,"seed":1},"think":"low","stream":false,"keep_alive":"5m","truncate":true,"tools":[{"type":"function","function":{"name":"f","parameters":{}}}]}"#,
    r#"{"model":"m","messages":[{"role":"developer","content":"a"},{"role":"user","content":[{"type":"text","text":"b"}]},{"role":"assistant","content":null,"reasoning_content":"r","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}}]},{"role":"tool","tool_call_id":"1","content":"c"}],"n":2,"stop":["a","b"],"max_tokens":5,"temperature":0.5,"logit_bias":{"5":-100},"logprobs":true,"top_logprobs":3,"stream":true,"stream_options":{"include_usage":true},"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object"}}},"tools":[{"type":"function","function":{"name":"f","parameters":{}}}],"tool_choice":{"type":"function","function":{"name":"f"}},"reasoning_effort":"low","chat_template_kwargs":{"a":1},"keep_alive":"5m"}"#,
    r#"{"model":"m","prompt":[[1,2],[3]],"n":2,"best_of":2,"logprobs":2,"suffix":"","seed":-1,"echo":false,"stop":"x","top_k":40,"min_p":0.1}"#,
    r#"{"model":"m","input":["a","b"],"encoding_format":"base64","dimensions":4}"#,
    r#"{"model":"m","instructions":"i","input":[{"role":"user","content":"a"},{"type":"reasoning","summary":[{"type":"summary_text","text":"s"}]},{"type":"function_call","call_id":"1","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"1","output":"o"}],"tools":[{"type":"function","name":"f","parameters":null}],"tool_choice":{"type":"allowed_tools","mode":"auto","tools":[{"name":"f"}]},"text":{"format":{"type":"json_object"}},"reasoning":{"effort":"high"},"include":["message.output_text.logprobs"],"truncation":"auto","max_output_tokens":9}"#,
    r#"{"model":"m","max_tokens":9,"system":[{"type":"text","text":"s"}],"messages":[{"role":"user","content":"a"},{"role":"assistant","content":[{"type":"thinking","thinking":"t","signature":""},{"type":"tool_use","id":"1","name":"f","input":{}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"1","is_error":true,"content":[{"type":"text","text":"x"}]}]}],"tools":[{"name":"f","input_schema":{}}],"tool_choice":{"type":"any"},"thinking":{"type":"adaptive"},"output_config":{"effort":"low","format":{"type":"json_schema","schema":{}}},"stop_sequences":["a"],"top_k":5}"#,
];

/// Values that parsers get wrong, in place of others.
const EDGES: [&str; 12] = [
    "null",
    "-1",
    "0",
    "1e999",
    "18446744073709551616",
    "\"\"",
    "[]",
    "{}",
    "[[]]",
    "true",
    "\"\\ud800\"",
    "[null]",
];

/// xorshift64*, so that each run does the same.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap() % end
    }
}

/// Changes a few bytes, or the value behind a colon.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(4) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 if at > 0 => bytes.truncate(at),
            _ => {
                let Some(colon) = bytes[at..].iter().position(|&byte| byte == b':') else {
                    continue;
                };
                let value = at + colon + 1;
                let end = bytes[value..].iter().position(|byte| b",}]".contains(byte));
                let edge = EDGES[random.below(EDGES.len())].bytes();
                bytes.splice(value..value + end.unwrap_or(0), edge);
            }
        }
    }
}

fn check(body: &[u8]) {
    fuzz_ollama(body);
    fuzz_openai(body);
    fuzz_anthropic(body);
}

#[test]
fn mutated_requests() {
    let mut random = Random(2024);
    for seed in SEEDS {
        check(seed.as_bytes());
        for _ in 0..4000 {
            let mut bytes = seed.as_bytes().to_vec();
            mutate(&mut random, &mut bytes);
            check(&bytes);
        }
    }
    check(b"");
    check(&b"[".repeat(100_000));
}
