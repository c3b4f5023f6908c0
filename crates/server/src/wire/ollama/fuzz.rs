//! Body of a fuzz test: any bytes as any request.

use serde::de::DeserializeOwned;

use super::chat::ChatRequest;
use super::create::{CreateRequest, parse_digest};
use super::embed::{EmbedRequest, EmbeddingsRequest};
use super::generate::GenerateRequest;
use super::manage::{CopyRequest, DeleteRequest};
use super::pull::PullRequest;
use super::show::ShowRequest;
use crate::answer::Input;
use crate::config::Limits;

/// See [`crate::fuzz::fuzz_ollama`].
pub(crate) fn fuzz(data: &[u8]) {
    let limits = Limits::default();
    if let Some(Ok((settings, conversation))) =
        read::<ChatRequest>(data).map(|request| request.resolve(&limits))
    {
        assert!(conversation.messages.len() <= limits.messages_max);
        assert!(conversation.tools.len() <= limits.tools_max);
        let ask = settings.ask(Input::Chat(conversation), "");
        let stops = ask.stop.unwrap_or_default();
        assert!(stops.len() <= limits.stops_max);
        assert!(stops.iter().all(|stop| (1..=limits.stop_bytes_max).contains(&stop.len())));
        assert!(ask.sampling.temperature.is_none_or(f32::is_finite));
    }
    if let Some(Ok(ask)) = read::<EmbedRequest>(data).map(|it| it.resolve(&limits, "")) {
        assert!(ask.inputs.len() <= limits.inputs_max && !ask.model.is_empty());
    }
    let _ = read::<GenerateRequest>(data).map(|request| request.resolve(&limits));
    let _ = read::<EmbeddingsRequest>(data).map(|request| request.resolve(&limits, ""));
    let _ = read::<CreateRequest>(data).map(|request| request.resolve(&limits));
    let _ = read::<CopyRequest>(data).map(CopyRequest::resolve);
    let _ = read::<DeleteRequest>(data).map(DeleteRequest::resolve);
    let _ = read::<PullRequest>(data).map(PullRequest::resolve);
    let _ = read::<ShowRequest>(data).map(|request| request.model());
    let _ = parse_digest(&String::from_utf8_lossy(data));
}

fn read<T: DeserializeOwned>(data: &[u8]) -> Option<T> {
    serde_json::from_slice(data).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sound requests of all kinds; mutations of them reach deeper than noise.
    const SEEDS: &[&str] = &[
        r#"{"model":"m","messages":[{"role":"user","content":"é","images":[]},{"role":"assistant","thinking":"t","tool_calls":[{"id":"a","function":{"name":"f","arguments":{"x":1}}}]},{"role":"tool","tool_name":"f","tool_call_id":"a"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"think":"high","format":{"type":"object"},"keep_alive":"1h30m","logprobs":true,"top_logprobs":20}"#,
        r#"{"model":"m","prompt":"p","suffix":"s","system":"x","context":[1,2,3],"raw":false,"options":{"temperature":0.5,"stop":["a","b"],"num_ctx":4096,"num_predict":-1,"seed":1,"top_k":40,"use_mmap":true,"num_gpu":1.5},"keep_alive":-1,"stream":false,"truncate":false}"#,
        r#"{"model":"m","input":["a","b"],"dimensions":3,"truncate":true,"keep_alive":0.5}"#,
        r#"{"model":"m","from":"n","files":{"a.gguf":"sha256:00"},"license":["a","b"],"parameters":{"stop":"x"},"messages":[{"role":"user","content":"x"}],"source":"a","destination":"b:c","name":"d","verbose":true}"#,
    ];

    #[test]
    fn mutated_requests_do_no_harm() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            usize::try_from(random >> 33).unwrap() % below
        };
        let tokens = ["-1", "1e999", "null", "[]", "{}", "\"\"", "true", "9223372036854775808"];
        for seed in SEEDS {
            fuzz(seed.as_bytes());
            for _ in 0..2000 {
                let mut data = seed.as_bytes().to_vec();
                for _ in 0..=next(3) {
                    let at = next(data.len());
                    match next(3) {
                        0 => data[at] = u8::try_from(next(256)).unwrap(),
                        1 => drop(data.remove(at)),
                        // A value in place of another.
                        _ => {
                            let end = data[at..].iter().position(|b| b",}]".contains(b));
                            let end = end.map_or(data.len(), |len| at + len);
                            let token = tokens[next(tokens.len())].bytes();
                            data.splice(at..end, token);
                        }
                    }
                }
                fuzz(&data);
            }
        }
    }
}
