//! The process stays within its budget, all included.

mod common;

use common::{Sandbox, demo, suggested};
use hypura_testkit::widen::{Options, widen};

#[test]
fn the_budget_holds_while_a_long_prompt_is_read() {
    let sandbox = Sandbox::new();
    let model = sandbox.path("wide.gguf");
    let options = Options { times: 8, ffn_type: None, requantize: None, seed: 1 };
    widen(&demo(), &model, &options, &mut |_, _| {}).unwrap();
    let model_bytes = std::fs::metadata(&model).unwrap().len();

    // About 1,500 tokens, no two sentences alike: many experts are needed.
    let words = ["hotel", "train", "table", "flight", "song", "movie", "doctor", "weather"];
    let sentence = |i: usize| format!("{} {} for {i}. ", words[i % 8], words[i / 8 % 8]);
    let prompt: String = (100..340).map(sentence).collect();
    let common = ["wide.gguf", "--threads", "1", "-t", "0", "-n", "8", "-p", &prompt];

    let too_small = sandbox.run(&[&["run", "--memory", "1MiB"], &common[..]].concat());
    let smallest = suggested(&too_small, "--memory");
    let tenths = |n: u64| (model_bytes * n / 10).to_string();
    for memory in [smallest, tenths(5), tenths(6)] {
        let stats = sandbox.stats(&[&["--memory", &memory], &common[..]].concat());
        assert_eq!(stats["mode"], "expert-streaming", "{memory}");
        let field = |name: &str| stats[name].as_u64().unwrap();
        assert!((1400..1600).contains(&field("prompt_tokens")), "{stats}");
        let (peak, budget) = (field("peak_rss_bytes"), field("budget_bytes"));
        assert!(peak <= budget, "--memory {memory}: {peak} bytes of {budget}");
    }
}
