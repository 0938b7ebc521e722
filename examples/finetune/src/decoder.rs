//! One decoder for all families.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::activation::{gelu_approximate, silu};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use burn_preference::LmHead;
use burn_preference::tokens::{PackedBatch, Segment};

use crate::config::{Activation, DecoderConfig, Rope};

/// A decoder-only transformer and the head above it.
#[derive(Module, Debug)]
pub struct Decoder {
    /// `[vocab, hidden]`
    pub embedding: Embedding,
    /// From the first one on.
    pub layers: Vec<Layer>,
    /// Before the head.
    pub norm: RmsNorm,
    /// None where it is the embedding.
    pub head: Option<Linear>,
    #[module(skip)]
    config: DecoderConfig,
}

/// Attention and feed-forward, each added to what it was computed from.
#[derive(Module, Debug)]
pub struct Layer {
    /// Before attention.
    pub input_norm: RmsNorm,
    /// Queries.
    pub query: Linear,
    /// Keys.
    pub key: Linear,
    /// Values.
    pub value: Linear,
    /// From heads to hidden states.
    pub output: Linear,
    /// Of each head of queries (Qwen 3).
    pub query_norm: Option<RmsNorm>,
    /// Of each head of keys.
    pub key_norm: Option<RmsNorm>,
    /// Behind attention (Gemma 2).
    pub after_attention: Option<RmsNorm>,
    /// Before the feed-forward layer.
    pub mlp_norm: RmsNorm,
    /// Of the feed-forward layer.
    pub gate: Linear,
    /// What the gate multiplies.
    pub up: Linear,
    /// Back to hidden states.
    pub down: Linear,
    /// Behind it (Gemma 2).
    pub after_mlp: Option<RmsNorm>,
}

/// What each token may look at.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one a forward")]
pub enum Sees<'a> {
    /// True where a token must not look, `[batch or 1, 1, time, total]`.
    Mask(Tensor<4, Bool>),
    /// Prompts and completions of packed rows: nothing is computed that a mask would hide.
    Segments(&'a [Segment]),
}

/// Where tokens stand, and what each of them may look at.
struct Places<'a> {
    /// `[batch or 1, 1, time, head / 2]`
    cos: Tensor<4>,
    sin: Tensor<4>,
    sees: Sees<'a>,
}

impl DecoderConfig {
    /// A decoder with random weights.
    pub fn init(&self, device: &Device) -> Decoder {
        let linear = |from, to, bias| LinearConfig::new(from, to).with_bias(bias).init(device);
        let norm = |width| {
            RmsNormConfig::new(width)
                .with_epsilon(self.epsilon)
                .init(device)
        };
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let layer = |_| Layer {
            input_norm: norm(self.hidden),
            query: linear(self.hidden, queries, self.qkv_bias),
            key: linear(self.hidden, keys, self.qkv_bias),
            value: linear(self.hidden, keys, self.qkv_bias),
            output: linear(queries, self.hidden, false),
            query_norm: self.qk_norm.then(|| norm(self.head_dim)),
            key_norm: self.qk_norm.then(|| norm(self.head_dim)),
            after_attention: self.gemma.then(|| norm(self.hidden)),
            mlp_norm: norm(self.hidden),
            gate: linear(self.hidden, self.intermediate, false),
            up: linear(self.hidden, self.intermediate, false),
            down: linear(self.intermediate, self.hidden, false),
            after_mlp: self.gemma.then(|| norm(self.hidden)),
        };
        Decoder {
            embedding: EmbeddingConfig::new(self.vocab, self.hidden).init(device),
            layers: (0..self.layers).map(layer).collect(),
            norm: norm(self.hidden),
            head: (!self.tied).then(|| linear(self.hidden, self.vocab, false)),
            config: self.clone(),
        }
    }
}

impl Decoder {
    /// What it was made from.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The head, with what it does to logits.
    ///
    /// # Panics
    ///
    /// Panics on a softcap that f32 does not hold, which no config file has.
    pub fn lm_head(&self) -> LmHead {
        let head = match &self.head {
            Some(head) => LmHead::from(head),
            None => LmHead::from(&self.embedding),
        };
        match self.config.logit_softcap {
            Some(cap) => head.with_softcap(cap).expect("a number > 0"),
            None => head,
        }
    }

    /// Hidden states `[batch, time, hidden]` of right-padded tokens `[batch, time]`.
    ///
    /// # Panics
    ///
    /// Panics if a row is longer than the model's sliding window.
    pub fn hidden(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let ([_, time], device) = (ids.dims(), ids.device());
        let positions = Tensor::<1, Int>::arange(0..time as i64, &device);
        let future = Tensor::<2, Bool>::tril_mask([time, time], 0, &device);
        self.states(ids, positions.unsqueeze(), Sees::Mask(future.unsqueeze()))
    }

    /// The same of packed rows.
    ///
    /// # Panics
    ///
    /// As [`hidden`](Self::hidden).
    pub fn hidden_packed(&self, batch: &PackedBatch) -> Tensor<3> {
        let (ids, positions) = (batch.ids.clone(), batch.positions.clone());
        self.states(ids, positions, Sees::Segments(&batch.segments))
    }

    /// Hidden states of tokens at `positions`, `[batch or 1, time]`.
    ///
    /// # Panics
    ///
    /// As [`hidden`](Self::hidden).
    pub fn states(
        &self,
        ids: Tensor<2, Int>,
        positions: Tensor<2, Int>,
        sees: Sees<'_>,
    ) -> Tensor<3> {
        let [_, time] = ids.dims();
        if let Some(window) = self.config.window {
            assert!(
                time <= window,
                "rows of {time} tokens: this model attends to {window}, and the window is not \
                 implemented; cut the rows"
            );
        }
        let places = self.places(positions, sees);
        let mut x = self.embedding.forward(ids);
        if self.config.gemma {
            x = x * (self.config.hidden as f64).sqrt();
        }
        for layer in &self.layers {
            x = layer.forward(x, &places, &self.config);
        }
        self.norm.forward(x)
    }

    fn places<'a>(&self, positions: Tensor<2, Int>, sees: Sees<'a>) -> Places<'a> {
        let [batch, time] = positions.dims();
        let frequencies = frequencies(&self.config.rope, self.config.head_dim);
        let half = frequencies.len();
        let frequencies = TensorData::new(frequencies, [1, 1, 1, half]);
        let frequencies = Tensor::<4>::from_data(frequencies, &positions.device());
        let angles = positions.float().reshape([batch, 1, time, 1]) * frequencies;
        Places {
            cos: angles.clone().cos(),
            sin: angles.sin(),
            sees,
        }
    }
}

/// Radians a position, of each pair of numbers of a head.
fn frequencies(rope: &Rope, head_dim: usize) -> Vec<f32> {
    let frequency = |i: usize| {
        let plain = rope.theta.powf(-((2 * i) as f64) / head_dim as f64);
        let Some(scaling) = rope.scaling else {
            return plain;
        };
        // Turns in the context that the model was first trained for.
        let turns = scaling.original * plain / std::f64::consts::TAU;
        let high = (turns - scaling.low) / (scaling.high - scaling.low);
        let high = high.clamp(0.0, 1.0);
        high * plain + (1.0 - high) * plain / scaling.factor
    };
    #[allow(clippy::cast_possible_truncation, reason = "angles are f32")]
    let frequency = |i| frequency(i) as f32;
    (0..head_dim / 2).map(frequency).collect()
}

impl Places<'_> {
    /// Turns each pair of numbers, half a head apart.
    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let [first, second]: [Tensor<4>; 2] = x.chunk(2, 3).try_into().expect("two halves");
        let (cos, sin) = (&self.cos, &self.sin);
        let turned = first.clone() * cos.clone() - second.clone() * sin.clone();
        let other = second * cos.clone() + first * sin.clone();
        Tensor::cat(vec![turned, other], 3)
    }
}

impl Layer {
    fn forward(&self, x: Tensor<3>, places: &Places<'_>, config: &DecoderConfig) -> Tensor<3> {
        let after = |norm: &Option<RmsNorm>, y: Tensor<3>| match norm {
            Some(norm) => norm.forward(y),
            None => y,
        };
        let y = self.attention(self.input_norm.forward(x.clone()), places, config);
        let x = x + after(&self.after_attention, y);
        let y = self.mlp_norm.forward(x.clone());
        let gate = self.gate.forward(y.clone());
        let gate = match config.activation {
            Activation::Silu => silu(gate),
            Activation::GeluTanh => gelu_approximate(gate),
        };
        let y = self.down.forward(gate * self.up.forward(y));
        x + after(&self.after_mlp, y)
    }

    fn attention(&self, x: Tensor<3>, places: &Places<'_>, config: &DecoderConfig) -> Tensor<3> {
        let [batch, time, _] = x.dims();
        let split = |x: Tensor<3>, heads: usize, norm: &Option<RmsNorm>| {
            let x = x.reshape([batch, time, heads, config.head_dim]);
            let x = match norm {
                Some(norm) => norm.forward(x),
                None => x,
            };
            x.swap_dims(1, 2)
        };
        let query = split(
            self.query.forward(x.clone()),
            config.heads,
            &self.query_norm,
        );
        let key = split(self.key.forward(x.clone()), config.kv_heads, &self.key_norm);
        let value = split(self.value.forward(x), config.kv_heads, &None);
        let (query, key) = (places.rotate(query), places.rotate(key));
        let mixed = match &places.sees {
            Sees::Mask(mask) => attend(query, key, value, mask.clone(), config),
            Sees::Segments(segments) => attend_within(query, key, value, segments, config),
        };
        let width = config.heads * config.head_dim;
        self.output
            .forward(mixed.swap_dims(1, 2).reshape([batch, time, width]))
    }
}

fn attend(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Tensor<4, Bool>,
    config: &DecoderConfig,
) -> Tensor<4> {
    // Every group of query heads shares one key and value head.
    let [batch, kv_heads, total, head_dim] = key.dims();
    let share = |x: Tensor<4>| {
        x.unsqueeze_dim::<5>(2)
            .expand([batch, kv_heads, config.heads / kv_heads, total, head_dim])
            .reshape([batch, config.heads, total, head_dim])
    };
    let scores = query.matmul(share(key).swap_dims(2, 3)) * config.attention_scale;
    let scores = match config.attention_softcap {
        Some(cap) => (scores * cap.recip()).tanh() * cap,
        None => scores,
    };
    softmax(scores.mask_fill(mask, f32::NEG_INFINITY)).matmul(share(value))
}

/// Attention of one segment after the other.
fn attend_within(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    segments: &[Segment],
    config: &DecoderConfig,
) -> Tensor<4> {
    let [batch, heads, time, head_dim] = query.dims();
    let device = query.device();
    let mut rows: Vec<Vec<Tensor<4>>> = vec![Vec::new(); batch];
    let mut prompt = None;
    for segment in segments {
        let (row, tokens) = (segment.row, segment.tokens.clone());
        let part = |x: &Tensor<4>| {
            x.clone()
                .slice([row..row + 1, 0..x.dims()[1], tokens.clone()])
        };
        let (mut keys, mut values) = (part(&key), part(&value));
        if segment.sequence.is_none() {
            prompt = Some((keys.clone(), values.clone()));
        } else if let Some((of_prompt, said)) =
            prompt.clone().filter(|_| !segment.prompt.is_empty())
        {
            keys = Tensor::cat(vec![of_prompt, keys], 2);
            values = Tensor::cat(vec![said, values], 2);
        }
        let (before, own) = (segment.prompt.len(), tokens.len());
        let future = Tensor::<2, Bool>::tril_mask([own, before + own], before as i64, &device);
        rows[row].push(attend(
            part(&query),
            keys,
            values,
            future.unsqueeze(),
            config,
        ));
    }
    let rows = rows.into_iter().map(|mut parts| {
        let used: usize = parts.iter().map(|part| part.dims()[2]).sum();
        if used < time {
            let shape = [1, heads, time - used, head_dim];
            parts.push(Tensor::zeros(shape, (&device, query.dtype())));
        }
        Tensor::cat(parts, 2)
    });
    Tensor::cat(rows.collect(), 0)
}

/// Softmax over the last dimension.
///
/// Burn's own is one kernel without autodiff and its parts with it, and rounds otherwise: a policy
/// and a reference of the same weights would not be equal.
fn softmax(scores: Tensor<4>) -> Tensor<4> {
    let largest = scores.clone().detach().max_dim(3);
    let powers = (scores - largest).exp();
    let sum = powers.clone().sum_dim(3);
    powers / sum
}
