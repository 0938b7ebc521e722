//! Sizes and shape of a decoder.

/// The activation of the gate of the feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// SiLU activation, x·σ(x).
    Silu,
    /// GELU by its tangent, Gemma's.
    GeluTanh,
}

/// Base and scaling of rotary positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the frequencies, `rope_theta`.
    pub theta: f64,
    /// Llama 3's longer contexts.
    pub scaling: Option<RopeScaling>,
}

/// `rope_type` `llama3`: low frequencies are divided by `factor`, high ones stay, and those between
/// are interpolated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeScaling {
    /// Divisor of low frequencies, `factor`.
    pub factor: f64,
    /// Turns up to which a frequency is low, `low_freq_factor`.
    pub low: f64,
    /// Turns from which a frequency is high, `high_freq_factor`.
    pub high: f64,
    /// Tokens of the first training, `original_max_position_embeddings`.
    pub original: f64,
}

/// The layer that stands on the last block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputLayer {
    /// A head with weights of its own.
    Head,
    /// A head that is the embedding.
    Tied,
    /// One number instead of words, a reward: `…ForSequenceClassification` with one label.
    Reward,
}

/// A decoder-only transformer: RMS norms, rotary positions, grouped-query attention, gated feed
/// forward.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Width of the hidden states.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub intermediate: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Number of heads of queries.
    pub heads: usize,
    /// Number of heads of keys and values.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Number of words.
    pub vocab: usize,
    /// ε of the norms.
    pub epsilon: f64,
    /// Base and scaling of rotary positions.
    pub rope: Rope,
    /// The layer that stands on the last block.
    pub output: OutputLayer,
    /// True where queries, keys and values have biases (Qwen 2).
    pub qkv_bias: bool,
    /// True where queries and keys have norms of their own (Qwen 3).
    pub qk_norm: bool,
    /// True where norms multiply by 1 + w, stand behind attention and feed-forward too, and embeddings
    /// are scaled by √hidden (Gemma 2).
    pub gemma: bool,
    /// The activation of the feed-forward layer.
    pub activation: Activation,
    /// The number that attention scores are divided by.
    pub attention_divisor: f64,
    /// c of c·tanh(x/c), for attention scores.
    pub attention_softcap: Option<f64>,
    /// c of c·tanh(x/c), for logits.
    pub logit_softcap: Option<f64>,
    /// Tokens of the longest sequences that the model was trained on, where the file says so.
    pub positions: Option<usize>,
    /// Largest number of tokens of a sequence in which a sliding window hides nothing.
    pub window: Option<usize>,
}
