//! Shapes of models as their files state them, and what llama.cpp makes of them.

use hypura_gguf::{Hparams, Metadata, Value};

/// Metadata under an architecture's prefix.
fn read(architecture: &str, pairs: &[(&str, Value)]) -> Hparams {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", architecture);
    for (key, value) in pairs {
        metadata.insert(format!("{architecture}.{key}"), value.clone());
    }
    Hparams::read(&metadata, Some(1000))
}

/// Layers with a flag, as in `--#---#-`.
fn drawn(flags: &[bool]) -> String {
    flags.iter().map(|&flag| if flag { '#' } else { '-' }).collect()
}

fn shape(n_layer: u32, n_embd: u32, n_head: u32, n_head_kv: u32) -> Vec<(&'static str, Value)> {
    vec![
        ("block_count", n_layer.into()),
        ("embedding_length", n_embd.into()),
        ("attention.head_count", n_head.into()),
        ("attention.head_count_kv", n_head_kv.into()),
    ]
}

fn with(
    mut shape: Vec<(&'static str, Value)>,
    more: &[(&'static str, Value)],
) -> Vec<(&'static str, Value)> {
    shape.retain(|(key, _)| more.iter().all(|(other, _)| other != key));
    shape.extend(more.iter().cloned());
    shape
}

#[test]
fn nothing_is_known_of_nothing() {
    let hparams = Hparams::read(&Metadata::new(), None);
    assert_eq!(hparams, Hparams::default());
    assert_eq!((hparams.key_row_elements(0), hparams.n_layer_trunk()), (0, 0));
}

#[test]
fn defaults_are_those_of_llama_cpp() {
    let hparams = read("llama", &shape(2, 4096, 32, 8)[..3]);
    assert_eq!(hparams.n_head_kv, [32, 32]); // as many as heads
    assert_eq!((hparams.key_length, hparams.value_length), (128, 128));
    assert_eq!((hparams.key_length_swa, hparams.rope_dimension_count), (128, 128));
    assert_eq!((hparams.sliding_window, hparams.n_expert), (None, 0));
    assert_eq!(hparams.key_row_elements(1), 4096);
    assert_eq!(hparams.key_row_elements(2), 0); // no such layer
    assert_eq!(hparams.recurrent, None);
    assert_eq!(hparams.n_vocab, Some(1000));

    let absurd = read("llama", &shape(u32::MAX, 1, 1, 1));
    assert_eq!(absurd.n_layer, 512);
}

#[test]
fn experts_and_prediction_layers() {
    let more = [
        ("expert_count", 128_u32.into()),
        ("expert_used_count", 8_u32.into()),
        ("leading_dense_block_count", 1_u32.into()),
        ("nextn_predict_layers", 1_u32.into()),
        ("attention.key_length", 128_u32.into()),
    ];
    let hparams = read("glm4moe", &with(shape(4, 2048, 32, 4), &more));
    assert_eq!((hparams.n_expert, hparams.n_expert_used_max()), (128, 8));
    assert_eq!((hparams.n_layer_trunk(), hparams.leading_dense_block_count), (3, 1));
    assert_eq!(drawn(&hparams.has_kv), "###-");
    assert_eq!((hparams.key_row_elements(0), hparams.key_row_elements(3)), (512, 0));
    assert_eq!(hparams.value_row_elements(0), 256);
}

#[test]
fn heads_differ_by_layer() {
    let heads: Value = vec![16_i32, 8, 4, 0].into();
    let more = [("attention.head_count_kv", heads)];
    let hparams = read("openelm", &with(shape(4, 1024, 16, 0), &more));
    assert_eq!(hparams.n_head_kv, [16, 8, 4, 0]);
    let rows: Vec<_> = (0..4).map(|layer| hparams.key_row_elements(layer)).collect();
    assert_eq!(rows, [1024, 512, 256, 0]);
}

#[test]
fn latent_attention_keeps_keys_only() {
    // DeepSeek-V2-Lite: 512 compressed and 64 rotated elements.
    let more = [
        ("attention.key_length", 576_u32.into()),
        ("attention.value_length", 512_u32.into()),
        ("attention.key_length_mla", 192_u32.into()),
        ("attention.value_length_mla", 128_u32.into()),
        ("attention.kv_lora_rank", 512_u32.into()),
        ("rope.dimension_count", 64_u32.into()),
    ];
    let hparams = read("deepseek2", &with(shape(27, 2048, 16, 1), &more));
    assert!(hparams.is_mla());
    assert_eq!((hparams.kv_lora_rank, hparams.rope_dimension_count), (Some(512), 64));
    assert_eq!((hparams.key_row_elements(0), hparams.value_row_elements(0)), (576, 0));
}

#[test]
fn sliding_windows() {
    let check = |architecture: &str, more: &[(&'static str, Value)], window, pattern: &str| {
        let n_layer = u32::try_from(pattern.len()).expect("few");
        let hparams = read(architecture, &with(shape(n_layer, 64, 4, 2), more));
        assert_eq!(hparams.sliding_window, window, "{architecture}");
        assert_eq!(drawn(&hparams.is_sliding), pattern, "{architecture}");
    };
    let window = |tokens: u32| ("attention.sliding_window", Value::U32(tokens));
    let pattern = |value: Value| ("attention.sliding_window_pattern", value);
    check("gemma3", &[window(1024)], Some(1024), "#####-#####-#");
    check("gemma3", &[], None, "------------");
    check("gemma3", &[window(1024), pattern(2_u32.into())], Some(1024), "#-#-");
    check("gemma2", &[], Some(4096), "#-#-#-");
    check("gpt-oss", &[window(128)], Some(128), "#-#-#-");
    check("llama4", &[], Some(8192), "###-###-");
    check("llama4", &[window(0)], None, "--------");
    check("smallthinker", &[window(99)], Some(4096), "-###-###");
    check("deepseek4", &[window(128)], Some(128), "####");
    check("exaone4", &[], None, "----"); // only its 64-layer model has windows
    check("phi3", &[window(2047)], None, "----"); // not applied
    check("qwen2", &[window(4096)], None, "----"); // stated, but no layer uses it
    let listed: Value = vec![true, false, false, true].into();
    check("gemma4", &[window(512), pattern(listed)], Some(512), "#--#");
    let listed: Value = vec![0_u32, 1, 1, 0].into();
    check("step35", &[window(512), pattern(listed)], Some(512), "-##-");

    // Heads of another size where the window is.
    let more = [
        window(512),
        pattern(vec![true, false].into()),
        ("attention.key_length", 512_u32.into()),
        ("attention.key_length_swa", 256_u32.into()),
    ];
    let hparams = read("gemma4", &with(shape(2, 64, 4, 2), &more));
    assert_eq!((hparams.key_row_elements(0), hparams.key_row_elements(1)), (512, 1024));
}

#[test]
fn layers_that_use_the_keys_of_others() {
    let more = [("attention.shared_kv_layers", 3_u32.into())];
    let hparams = read("gemma4", &with(shape(5, 64, 4, 2), &more));
    assert_eq!(drawn(&hparams.has_kv), "##---");
    let hparams = read("gemma3n", &shape(30, 64, 4, 2));
    assert_eq!(drawn(&hparams.has_kv), "####################----------");
}

#[test]
fn recurrent_layers_and_their_state() {
    let check = |architecture: &str,
                 more: &[(&'static str, Value)],
                 recurrent: &str,
                 has_kv: &str,
                 elements: Option<(u64, u64)>| {
        let n_layer = u32::try_from(recurrent.len()).expect("few");
        let hparams = read(architecture, &with(shape(n_layer, 64, 4, 2), more));
        assert_eq!(drawn(&hparams.is_recurrent), recurrent, "{architecture}");
        assert_eq!(drawn(&hparams.has_kv), has_kv, "{architecture}");
        let found = hparams.recurrent.map(|r| (r.conv_state_elements, r.state_elements));
        assert_eq!(found, elements, "{architecture}");
    };
    let ssm: [(&str, Value); 4] = [
        ("ssm.conv_kernel", 4_u32.into()),
        ("ssm.inner_size", 128_u32.into()),
        ("ssm.state_size", 16_u32.into()),
        ("ssm.group_count", 2_u32.into()),
    ];
    let ssm_with = |more: &[(&'static str, Value)]| with(ssm.to_vec(), more);
    // (4 - 1) x (128 + 2 x 2 x 16), and 16 x 128.
    let sizes = Some((576, 2048));
    let heads_kv = |heads: Vec<u32>| ("attention.head_count_kv", Value::from(heads));

    check("mamba2", &ssm_with(&[heads_kv(vec![0; 3])]), "###", "---", sizes);
    check("falcon-h1", &ssm, "###", "###", sizes);
    check("qwen3next", &ssm, "###-###-", "---#---#", sizes);
    let interval = ("full_attention_interval", 2_u32.into());
    check("qwen35moe", &ssm_with(&[interval]), "#-#-", "-#-#", sizes);
    let nextn = ("nextn_predict_layers", 1_u32.into());
    check("qwen35", &ssm_with(&[nextn]), "###--", "---#-", sizes);
    let listed = ("attention.recurrent_layers", vec![1_u32, 0, 0].into());
    check("qwen3next", &ssm_with(&[listed]), "#--", "-##", sizes);
    check("jamba", &ssm_with(&[heads_kv(vec![0, 2, 0])]), "#-#", "-#-", sizes);
    check("granitehybrid", &ssm_with(&[heads_kv(vec![0, 2])]), "#-", "-#", sizes);
    let ff = ("feed_forward_length", vec![0_u32, 99, 0].into());
    check("nemotron_h", &ssm_with(&[heads_kv(vec![0, 0, 2]), ff]), "#--", "--#", sizes);
    let shortconv = ("shortconv.l_cache", 3_u32.into());
    check("lfm2", &[shortconv, heads_kv(vec![0, 2])], "#-", "-#", Some((128, 0)));
    let kda = [("kda.head_dim", 8_u32.into()), ("ssm.conv_kernel", 4_u32.into())];
    let kda = with(kda.to_vec(), &[heads_kv(vec![0, 4])]);
    check("kimi-linear", &kda, "#-", "-#", Some((3 * 3 * 4 * 8, 8 * 8 * 4)));
    let wkv = ("wkv.head_size", 32_u32.into());
    check("rwkv6", &[wkv, heads_kv(vec![0; 2])], "##", "--", Some((128, 2048)));
    let eight = heads_kv(vec![2; 8]);
    check("minimax-01", &[eight], "#######-", "-------#", Some((0, 16 * 16 * 4)));
    // A dense model without keys in a layer (Deci) has no state for that.
    check("deci", &[heads_kv(vec![0, 2])], "--", "-#", None);
}
