//! SmolLM2's weights in the Llama of the other examples.

use std::io;

use burn::module::{Lora, Module, ParamGroup};
use burn::tensor::{Device, Int, Tensor};
use burn_preference::LmHead;
use burn_preference::tokens::PackedBatch;

use crate::gguf::Gguf;
use crate::llama::{Llama, LlamaConfig, Sees};

/// Loads a GGUF file of the `llama` family with a tied head, for `max_time` tokens.
pub fn load(file: &Gguf, max_time: usize, device: &Device) -> io::Result<Llama> {
    let size = |key: &str| file.size(&format!("llama.{key}"));
    #[allow(clippy::cast_possible_truncation, reason = "f32 in the file as well")]
    let config = LlamaConfig {
        dim: size("embedding_length")?,
        hidden: size("feed_forward_length")?,
        layers: size("block_count")?,
        heads: size("attention.head_count")?,
        kv_heads: size("attention.head_count_kv")?,
        vocab: file.texts("tokenizer.ggml.tokens")?.len(),
        max_time,
        tied: true,
        rope_base: file.number("llama.rope.freq_base")? as f32,
    };
    let mut error = None;
    let model = config.load(device, true, |name| {
        file.tensor(&gguf_name(name)).unwrap_or_else(|e| {
            error.get_or_insert(e);
            Vec::new()
        })
    });
    error.map_or(Ok(model), Err)
}

/// GGUF's name of what Hugging Face calls `name`.
fn gguf_name(name: &str) -> String {
    let mut name = name.to_owned();
    for (theirs, ours) in [
        ("model.layers.", "blk."),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ] {
        name = name.replace(theirs, ours);
    }
    name
}

/// Hidden states and the tied head: no logits.
pub fn hidden(model: &Llama, tokens: Tensor<2, Int>) -> (Tensor<3>, LmHead) {
    let states = model.hidden(tokens);
    (states, LmHead::from(&model.embedding))
}

/// The same of packed rows, without what a mask would hide.
pub fn hidden_packed(model: &Llama, batch: &PackedBatch) -> (Tensor<3>, LmHead) {
    let (ids, positions) = (batch.ids.clone(), batch.positions.clone());
    let states = model.hidden_packed(ids, positions, Sees::Segments(&batch.segments));
    (states, LmHead::from(&model.embedding))
}

/// Adapters on every linear layer of every block; all else is frozen.
pub fn with_lora(model: Llama, rank: usize) -> Llama {
    let layers = ["query", "key", "value", "output", "gate", "up", "down"];
    let path = |block: usize| layers.map(|layer| format!("blocks.{block}.{layer}.weight"));
    let paths: Vec<String> = (0..model.blocks.len()).flat_map(path).collect();
    let alpha = 2.0 * rank as f64;
    model.apply_lora(Lora::new(rank, alpha).set_param_group(ParamGroup::from_paths(paths)))
}
