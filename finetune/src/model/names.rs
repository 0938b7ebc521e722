//! The parts of a layer by the names of Hugging Face's files.

use burn::nn::RmsNorm;

use super::decoder::{Decoder, Layer};
use super::projection::Projection;

/// The embedding's name in Hugging Face's files.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The head's name there.
pub(crate) const HEAD: &str = "lm_head.weight";

/// The projections of a layer, and what Hugging Face calls them.
pub(crate) fn projections(layer: &mut Layer) -> [(&mut Projection, &'static str); 7] {
    [
        (&mut layer.query, "self_attn.q_proj"),
        (&mut layer.key, "self_attn.k_proj"),
        (&mut layer.value, "self_attn.v_proj"),
        (&mut layer.output, "self_attn.o_proj"),
        (&mut layer.gate, "mlp.gate_proj"),
        (&mut layer.up, "mlp.up_proj"),
        (&mut layer.down, "mlp.down_proj"),
    ]
}

/// The norms of a layer, and what Hugging Face calls them. The one before the feed-forward layer has
/// another name where attention has a norm behind it.
pub(crate) fn norms(
    layer: &mut Layer,
    gemma: bool,
) -> impl Iterator<Item = (&mut RmsNorm, &'static str)> {
    let before_mlp = if gemma {
        "pre_feedforward_layernorm"
    } else {
        "post_attention_layernorm"
    };
    [
        (Some(&mut layer.input_norm), "input_layernorm"),
        (Some(&mut layer.mlp_norm), before_mlp),
        (layer.query_norm.as_mut(), "self_attn.q_norm"),
        (layer.key_norm.as_mut(), "self_attn.k_norm"),
        (layer.after_attention.as_mut(), "post_attention_layernorm"),
        (layer.after_mlp.as_mut(), "post_feedforward_layernorm"),
    ]
    .into_iter()
    .filter_map(|(norm, name)| Some((norm?, name)))
}

/// The projections of all layers, with their names in Hugging Face's files.
pub(crate) fn all_projections(
    decoder: &mut Decoder,
) -> impl Iterator<Item = (&mut Projection, String)> {
    let layers = decoder.layers.iter_mut().enumerate();
    layers.flat_map(|(i, layer)| {
        projections(layer)
            .map(|(projection, part)| (projection, format!("model.layers.{i}.{part}")))
    })
}
