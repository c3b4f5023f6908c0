//! The pinned llama.cpp loads and computes a random dense model.

mod common;

use std::collections::BTreeSet;

use common::{Runner, argmax};
use hypura_gguf::{GgmlType, Model};
use hypura_testkit::dense::{self, Shape};
use hypura_testkit::text::forced_tokens;

#[test]
fn activations_keep_their_size_through_many_layers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dense.gguf");
    for ty in [GgmlType::Q4_0, GgmlType::Q8_0, GgmlType::Q4_K] {
        let shape = Shape {
            n_layer: 12,
            n_embd: 1024,
            n_ff: 2048,
            n_head: 8,
            n_head_kv: 2,
            n_vocab: 1000,
            n_ctx: 512,
            ty,
            seed: 1,
        };
        dense::write(&path, &shape, &mut |_, _| {}).unwrap();
        let model = Model::open(&path).unwrap();
        assert_eq!(model.tensors.len(), 3 + 12 * 9);
        assert_eq!(model.metadata.u32("llama.context_length"), Some(512));

        let mut runner = Runner::load(&path);
        assert_eq!(runner.model.vocab().n_tokens(), 1000);
        let logits = runner.logits(&forced_tokens(1, 16, 256));
        assert!(logits.iter().flatten().all(|v| v.is_finite() && v.abs() < 50.0), "{ty}");
        let said: BTreeSet<_> = logits.iter().map(|row| argmax(row)).collect();
        assert!(said.len() > 8, "{ty}: {said:?}");
    }
}
