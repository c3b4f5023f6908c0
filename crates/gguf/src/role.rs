//! What a tensor is for, told from its name.
//!
//! The names are those that llama.cpp gives (`LLM_TENSOR_NAMES` in `llama-arch.cpp`):
//! `blk.7.ffn_up_exps.weight` is a layer, a stem and a suffix. A role serves planning and display;
//! it is no list of supported models: what has no rule here is [`Role::Other`] and simply resident.

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Role {
    /// Rows looked up by token: only the rows of a batch are read.
    TokenEmbedding,
    /// A second table of rows looked up by token, for each layer (Gemma 3n and its kin).
    PerLayerEmbedding,
    /// Learned positions and token types.
    PositionEmbedding,
    /// The last projection, to the vocabulary.
    Output,
    /// Heads for classification, embedding and decisions instead of a vocabulary.
    Head,
    /// Normalization, anywhere.
    Norm,
    /// Attention: projections, sinks, compressors and the indexer of sparse attention.
    Attention,
    /// What chooses experts: the router and its biases.
    Router,
    /// Weights of routed experts, all experts of a layer stacked along `dims[2]`.
    Expert(ExpertPart),
    /// Biases and scales of routed experts: small, resident, never streamed.
    ExpertAuxiliary,
    /// Experts that every token passes, their gate, and projections around the routed experts.
    SharedExpert,
    /// A matrix of a dense feed-forward network.
    DenseFfn,
    /// Biases and scales of a dense feed-forward network.
    DenseFfnAuxiliary,
    /// State-space, linear-attention, convolution and RWKV parts.
    Recurrent,
    /// Multi-token prediction: what only its blocks have.
    NextToken,
    /// Rotary frequency factors.
    Rope,
    /// None of these.
    Other,
}

/// Which matrix of an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum ExpertPart {
    Gate,
    Up,
    Down,
    /// Gate and up in one tensor.
    GateUp,
}

impl Role {
    /// The role of a tensor, and its layer if it belongs to one.
    ///
    /// Blocks of an encoder (`enc.blk.N`) and of a decoder (`dec.blk.N`) count their layers apart.
    #[must_use]
    pub fn of(name: &str) -> (Self, Option<u32>) {
        if let Some((layer, rest)) = split_layer(name) {
            return (layer_role(rest), Some(layer));
        }
        (model_role(name), None)
    }

    /// Whether tokens are looked up in it: llama.cpp keeps such tables in main memory
    /// (`LLM_TENSOR_LAYER_INPUT` in `llama-arch.cpp`).
    #[must_use]
    pub const fn is_input(self) -> bool {
        matches!(self, Self::TokenEmbedding | Self::PerLayerEmbedding | Self::PositionEmbedding)
    }

    /// Whether this is a streamable expert weight.
    #[must_use]
    pub const fn is_expert(self) -> bool {
        matches!(self, Self::Expert(_))
    }
}

/// `blk.7.rest` as 7 and `rest`.
fn split_layer(name: &str) -> Option<(u32, &str)> {
    let name = name.strip_prefix("enc.").or_else(|| name.strip_prefix("dec.")).unwrap_or(name);
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

/// The role of a tensor outside the layers.
fn model_role(name: &str) -> Role {
    let stem = split_suffix(name).0;
    match stem {
        "token_embd" => Role::TokenEmbedding,
        "per_layer_token_embd" => Role::PerLayerEmbedding,
        "position_embd" | "token_types" => Role::PositionEmbedding,
        "output" => Role::Output,
        "cls" | "cls.output" | "dense_2" | "dense_3" => Role::Head,
        "rope_freqs" | "rope_factors_long" | "rope_factors_short" => Role::Rope,
        _ if is_norm(stem) => Role::Norm,
        _ if stem.starts_with("decision.") => Role::Head,
        _ if stem.starts_with("nextn.") => Role::NextToken,
        _ => Role::Other,
    }
}

/// The role of a tensor of a layer, given its name behind `blk.N.`.
fn layer_role(name: &str) -> Role {
    let (stem, suffix) = split_suffix(name);
    let is_weight = suffix == "weight";
    if let Some(role) = ffn_role(stem, is_weight) {
        return role;
    }
    if is_norm(stem) {
        return Role::Norm;
    }
    let starts_with = |prefixes: &[&str]| prefixes.iter().any(|prefix| stem.starts_with(prefix));
    if starts_with(&["ssm_", "time_mix_", "channel_mix_", "shortconv."]) {
        Role::Recurrent
    } else if starts_with(&["attn_rot_embd"]) {
        Role::Rope
    } else if starts_with(&["nextn."]) {
        Role::NextToken
    } else if starts_with(&["attn_conv_", "attn_res_score"]) {
        // Residual scores and the convolutions of a drafting model: neither attention nor state.
        Role::Other
    } else if starts_with(&["attn_", "cross_attn_", "vis_attn_", "indexer"]) {
        Role::Attention
    } else {
        Role::Other
    }
}

/// The role of a feed-forward tensor; `None` if it is none.
fn ffn_role(stem: &str, is_weight: bool) -> Option<Role> {
    let expert = |part| {
        if is_weight { Role::Expert(part) } else { Role::ExpertAuxiliary }
    };
    Some(match stem {
        "ffn_gate_exps" | "ffn_gate_chexps" => expert(ExpertPart::Gate),
        "ffn_up_exps" | "ffn_up_chexps" => expert(ExpertPart::Up),
        "ffn_down_exps" | "ffn_down_chexps" => expert(ExpertPart::Down),
        "ffn_gate_up_exps" => expert(ExpertPart::GateUp),
        "ffn_gate_inp" | "exp_probs_b" | "exp_probs_b_vl" | "ffn_gate_tid2eid" => Role::Router,
        "ffn_gate_shexp" | "ffn_up_shexp" | "ffn_down_shexp" | "ffn_gate_inp_shexp"
        | "ffn_latent_down" | "ffn_latent_up" | "ffn_routed_down" | "ffn_routed_up" => {
            Role::SharedExpert
        }
        // RWKV's channel mix is a feed-forward network: key up, value down, receptance as the gate.
        "ffn_gate"
        | "ffn_up"
        | "ffn_down"
        | "channel_mix_key"
        | "channel_mix_value"
        | "channel_mix_receptance" => {
            if is_weight {
                Role::DenseFfn
            } else {
                Role::DenseFfnAuxiliary
            }
        }
        "ffn.act" => Role::DenseFfnAuxiliary,
        _ => return None,
    })
}

/// `ffn_up.weight` as `ffn_up` and `weight`; some tensors have no suffix.
fn split_suffix(name: &str) -> (&str, &str) {
    match name.rsplit_once('.') {
        Some((stem, suffix @ ("weight" | "bias" | "scale" | "scales" | "input_scale"))) => {
            (stem, suffix)
        }
        _ => (name, ""),
    }
}

/// Whether a stem has `norm` as one of its words (or is RWKV's layer norm).
fn is_norm(stem: &str) -> bool {
    stem == "time_mix_ln"
        || stem
            .split(['.', '_'])
            .any(|word| matches!(word, "norm" | "norm1" | "norm2" | "enorm" | "hnorm"))
}
