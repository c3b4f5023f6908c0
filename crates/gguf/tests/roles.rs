//! Every name that llama.cpp can give a tensor (`LLM_TENSOR_NAMES`), and its role.

use hypura_gguf::{ExpertPart, Role};

/// Outside the layers.
const MODEL: &[(Role, &str)] = &[
    (Role::TokenEmbedding, "token_embd"),
    (Role::PerLayerEmbedding, "per_layer_token_embd"),
    (Role::PositionEmbedding, "position_embd token_types"),
    (Role::Output, "output"),
    (Role::Rope, "rope_freqs rope_factors_long rope_factors_short"),
    (
        Role::Head,
        "cls cls.output dense_2 dense_3 decision.proj_memory decision.proj_question \
         decision.proj_option_question decision.proj_global decision.proj_option_context \
         decision.proj_option_lexical decision.scales decision.scorer decision.scorer_out",
    ),
    (
        Role::Norm,
        "output_norm token_embd_norm cls.norm enc.output_norm dec.output_norm output_hc_norm \
         per_layer_proj_norm decision.hidden_norm decision.option_summary_norm \
         decision.field_norm decision.option_norm convnext.3.norm posnet.3.norm posnet.3.norm1 \
         posnet.3.norm2 posnet.3.attn_norm",
    ),
    (Role::NextToken, "nextn.pre_projection nextn.post_projection"),
    (
        Role::Other,
        "hrm.z_l_init output_res_score output_hc_fn output_hc_base output_hc_scale output_hc_down \
         output_hc_up per_layer_model_proj altup_unembd_proj altup_proj conv1d convnext.3.dw \
         convnext.3.pw1 convnext.3.pw2 convnext.3.gamma posnet.3.conv1 posnet.3.conv2 \
         posnet.3.attn_q posnet.3.attn_k posnet.3.attn_v posnet.3.attn_output \
         masked_embd_centroids masked_embd_ordering fc d2t markov_w1 markov_w2 conf_proj \
         selector_predecessor selector_successor selector_hidden",
    ),
];

/// Behind `blk.N.`.
const LAYER: &[(Role, &str)] = &[
    (
        Role::Norm,
        "attn_norm attn_norm_2 attn_q_norm attn_k_norm attn_q_a_norm attn_kv_a_norm \
         attn_output_norm attn_sub_norm attn_compressor_norm ffn_norm ffn_norm_exps ffn_sub_norm \
         ffn_routed_norm post_attention_norm post_ffw_norm post_ffw_norm_1 post_ffw_norm_2 \
         pre_ffw_norm_2 post_norm layer_output_norm ssm_norm ssm_dt_norm ssm_b_norm ssm_c_norm \
         hc_attn_norm hc_ffn_norm ple_norm_key ple_norm_query ple_norm_conv altup_router_norm \
         laurel_post_norm nextn.enorm nextn.hnorm nextn.shared_head_norm nextn.hc_head_norm \
         time_mix_ln indexer.k_norm indexer.q_norm indexer_compressor_norm",
    ),
    (
        Role::Attention,
        "attn_q attn_k attn_v attn_qkv attn_output attn_gate attn_sinks attn_q_a attn_q_b \
         attn_kv_a_mqa attn_kv_b attn_kv attn_k_b attn_v_b attn_output_a attn_output_b \
         attn_compressor_kv attn_compressor_gate attn_compressor_ape vis_attn_qkv vis_attn_output \
         indexer.proj indexer.attn_k indexer.attn_q_b indexer.q_proj indexer.k_proj \
         indexer_compressor_kv indexer_compressor_gate indexer_compressor_ape",
    ),
    (Role::Rope, "attn_rot_embd"),
    (Role::Router, "ffn_gate_inp exp_probs_b exp_probs_b_vl ffn_gate_tid2eid"),
    (Role::Expert(ExpertPart::Gate), "ffn_gate_exps ffn_gate_chexps"),
    (Role::Expert(ExpertPart::Up), "ffn_up_exps ffn_up_chexps"),
    (Role::Expert(ExpertPart::Down), "ffn_down_exps ffn_down_chexps"),
    (Role::Expert(ExpertPart::GateUp), "ffn_gate_up_exps"),
    (
        Role::SharedExpert,
        "ffn_gate_shexp ffn_up_shexp ffn_down_shexp ffn_gate_inp_shexp ffn_latent_down \
         ffn_latent_up ffn_routed_down ffn_routed_up",
    ),
    (
        Role::DenseFfn,
        "ffn_gate ffn_up ffn_down channel_mix_key channel_mix_value channel_mix_receptance",
    ),
    (Role::DenseFfnAuxiliary, "ffn.act"),
    (
        Role::Recurrent,
        "ssm_a ssm_conv1d ssm_dt ssm_ba ssm_alpha ssm_in ssm_out ssm_x ssm_d ssm_conv1d_q \
         ssm_conv1d_k ssm_conv1d_v ssm_f_a ssm_f_b ssm_beta ssm_g_a ssm_g ssm_g_b time_mix_w1 \
         time_mix_w2 time_mix_lerp_x time_mix_lerp_w time_mix_lerp_k time_mix_lerp_v \
         time_mix_lerp_r time_mix_lerp_g time_mix_lerp_fused time_mix_first time_mix_decay \
         time_mix_decay_w1 time_mix_decay_w2 time_mix_key time_mix_value time_mix_receptance \
         time_mix_gate time_mix_output channel_mix_lerp_k channel_mix_lerp_r time_mix_w0 \
         time_mix_a0 time_mix_a1 time_mix_a2 time_mix_v0 time_mix_v1 time_mix_v2 time_mix_g1 \
         time_mix_g2 time_mix_k_k time_mix_k_a time_mix_r_k shortconv.conv shortconv.in_proj \
         shortconv.out_proj",
    ),
    (
        Role::NextToken,
        "nextn.eh_proj nextn.embed_tokens nextn.shared_head_head nextn.hc_head_down \
         nextn.hc_head_up",
    ),
    // One tensor per expert, as Mixtral's first files had them, is no longer loaded by llama.cpp.
    (Role::Other, "ffn_gate.5 ffn_up.5 ffn_down.5"),
    (
        Role::Other,
        "layer_output_scale attn_res_score ffn_res_score hc_attn_fn hc_attn_base hc_attn_scale \
         hc_ffn_fn hc_ffn_base hc_ffn_scale hc_attn_down hc_attn_up hc_attn_inject hc_ffn_down \
         hc_ffn_up hc_ffn_inject ple_key ple_value ple_conv1d inp_gate proj altup_correct_coef \
         altup_correct_scale altup_predict_coef altup_router laurel_l laurel_r vis_gate vis_down \
         vis_up attn_conv_base attn_conv_proj ffn_conv_base ffn_conv_proj",
    ),
];

/// Behind `enc.blk.N.` and `dec.blk.N.`.
const ENCODER_DECODER: &[(Role, &str)] = &[
    (Role::Norm, "attn_norm ffn_norm cross_attn_norm cross_attn_norm_kv"),
    (
        Role::Attention,
        "attn_q attn_k attn_v attn_o attn_rel_b cross_attn_q cross_attn_k cross_attn_v \
         cross_attn_o cross_attn_rel_b",
    ),
    (Role::DenseFfn, "ffn_gate ffn_up ffn_down"),
];

fn check(table: &[(Role, &str)], prefix: &str, layer: Option<u32>) {
    for (role, stems) in table {
        for stem in stems.split_whitespace() {
            let name = format!("{prefix}{stem}.weight");
            assert_eq!(Role::of(&name), (*role, layer), "{name}");
        }
    }
}

#[test]
fn every_name_of_llama_cpp() {
    check(MODEL, "", None);
    check(LAYER, "blk.17.", Some(17));
    check(ENCODER_DECODER, "enc.blk.0.", Some(0));
    check(ENCODER_DECODER, "dec.blk.0.", Some(0));
}

#[test]
fn companions_of_matrices_are_not_streamed() {
    let check = |name: &str, role: Role| assert_eq!(Role::of(name).0, role, "{name}");
    for suffix in ["bias", "scale", "input_scale"] {
        check(&format!("blk.0.ffn_gate_exps.{suffix}"), Role::ExpertAuxiliary);
        check(&format!("blk.0.ffn_down_exps.{suffix}"), Role::ExpertAuxiliary);
        check(&format!("blk.0.ffn_up.{suffix}"), Role::DenseFfnAuxiliary);
    }
    check("blk.0.exp_probs_b.bias", Role::Router);
    check("blk.0.attn_q.bias", Role::Attention);
    check("blk.0.ssm_a", Role::Recurrent);
    check("blk.0.time_mix_first", Role::Recurrent);
}

#[test]
fn names_that_only_look_alike_have_no_layer() {
    let check = |name: &str| assert_eq!(Role::of(name), (Role::Other, None), "{name:?}");
    for name in [
        "",
        "blk",
        "blk.",
        "blk.0",
        "blk.x.attn_q.weight",
        "blk.-1.attn_q.weight",
        "blk.99999999999.attn_q.weight",
        "xblk.0.attn_q.weight",
        "token_embd2.weight",
        ".weight",
    ] {
        check(name);
    }
}
