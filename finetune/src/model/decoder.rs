//! One decoder for all families.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, RmsNorm, RmsNormConfig};
use burn::tensor::activation::{gelu_approximate, silu};
use burn::tensor::{Bool, Device, Int, Tensor};
use burn_preference::LmHead;
use burn_preference::tokens::PackedBatch;

use super::cache::{Cache, KeysValues};
use super::config::{Activation, DecoderConfig, OutputLayer};
use super::projection::Projection;
use super::rotary::Rotary;
use crate::attention::{ScoreScale, Visible, attend};

/// A decoder-only transformer and the head above it.
#[derive(Module, Debug)]
pub struct Decoder {
    /// The embedding, `[vocab, hidden]`.
    pub embedding: Embedding,
    /// Layers, the first one first.
    pub layers: Vec<Layer>,
    /// The norm before the head.
    pub norm: RmsNorm,
    /// The head from hidden states to logits; none where it is the embedding, or where there are none.
    pub head: Option<Projection>,
    /// The layer from a hidden state to a reward, of a reward model.
    pub score: Option<Projection>,
    #[module(skip)]
    config: DecoderConfig,
}

/// Attention and feed-forward, each added to what it was computed from.
#[derive(Module, Debug)]
pub struct Layer {
    /// The norm before attention.
    pub input_norm: RmsNorm,
    /// The projection to queries.
    pub query: Projection,
    /// The projection to keys.
    pub key: Projection,
    /// The projection to values.
    pub value: Projection,
    /// The projection from heads to hidden states.
    pub output: Projection,
    /// The norm of each head of queries (Qwen 3).
    pub query_norm: Option<RmsNorm>,
    /// The norm of each head of keys (Qwen 3).
    pub key_norm: Option<RmsNorm>,
    /// The norm behind attention (Gemma 2).
    pub after_attention: Option<RmsNorm>,
    /// The norm before the feed-forward layer.
    pub mlp_norm: RmsNorm,
    /// The gate of the feed-forward layer.
    pub gate: Projection,
    /// The projection that the gate multiplies.
    pub up: Projection,
    /// The projection back to hidden states.
    pub down: Projection,
    /// The norm behind the feed-forward layer (Gemma 2).
    pub after_mlp: Option<RmsNorm>,
}

/// Positions of tokens, and the others that each of them may look at.
struct Places<'a> {
    rotary: Rotary,
    visible: Visible<'a>,
}

impl DecoderConfig {
    /// Makes a decoder with random weights.
    pub fn init(&self, device: &Device) -> Decoder {
        let linear = |from, to, bias| Projection::new(from, to, bias, device);
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
            head: (self.output == OutputLayer::Head)
                .then(|| linear(self.hidden, self.vocab, false)),
            score: (self.output == OutputLayer::Reward).then(|| linear(self.hidden, 1, false)),
            config: self.clone(),
        }
    }
}

impl Decoder {
    /// The config that the decoder was made from.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The head with its softcap. A reward model has the embedding's, which nothing
    /// trained.
    ///
    /// # Panics
    ///
    /// Panics on a softcap that f32 does not hold, which no config file has.
    pub fn lm_head(&self) -> LmHead {
        let head = match &self.head {
            Some(head) => LmHead::transposed(head.weight()),
            None => LmHead::from(&self.embedding),
        };
        match self.config.logit_softcap {
            Some(cap) => head.with_softcap(cap).expect("a number > 0"),
            None => head,
        }
    }

    /// Hidden states `[batch, time, hidden]` of right-padded tokens `[batch, time]`, and the head.
    ///
    /// # Panics
    ///
    /// Panics if a row is longer than the model's sliding window.
    pub fn hidden(&self, ids: Tensor<2, Int>) -> (Tensor<3>, LmHead) {
        (self.following(ids, &mut self.cache()), self.lm_head())
    }

    /// Hidden states of packed rows and the head, without computing what a mask would hide.
    ///
    /// # Panics
    ///
    /// Panics if a sequence is longer than the model's sliding window.
    pub fn hidden_packed(&self, batch: &PackedBatch) -> (Tensor<3>, LmHead) {
        self.packed(batch, Visible::Segments(&batch.segments))
    }

    /// Hidden states of packed rows and the head, under a mask over all of each row.
    ///
    /// # Panics
    ///
    /// As [`hidden_packed`](Self::hidden_packed).
    pub fn hidden_masked(&self, batch: &PackedBatch) -> (Tensor<3>, LmHead) {
        self.packed(batch, Visible::Mask(batch.attention_mask()))
    }

    fn packed(&self, batch: &PackedBatch, visible: Visible<'_>) -> (Tensor<3>, LmHead) {
        let seen = batch
            .segments
            .iter()
            .map(|s| s.prompt.len() + s.tokens.len());
        self.check_window(seen.max().unwrap_or(0));
        let (ids, positions) = (batch.ids.clone(), batch.positions.clone());
        let states = self.states(ids, positions, visible, &mut self.cache());
        (states, self.lm_head())
    }

    /// Hidden states of tokens that follow those of `cache`, to which they are added.
    ///
    /// # Panics
    ///
    /// As [`hidden`](Self::hidden).
    pub fn following(&self, ids: Tensor<2, Int>, cache: &mut Cache) -> Tensor<3> {
        let ([_, time], device) = (ids.dims(), ids.device());
        let start = cache.first().map_or(0, KeysValues::len);
        let total = start + time;
        self.check_window(total);
        let positions = Tensor::<1, Int>::arange(start as i64..total as i64, &device);
        let future = Tensor::<2, Bool>::tril_mask([time, total], start as i64, &device);
        let visible = Visible::Mask(future.unsqueeze());
        self.states(ids, positions.unsqueeze(), visible, cache)
    }

    /// Logits `[batch, vocab]` of the word after `ids`, which follow those of `cache`: for sampling.
    ///
    /// # Panics
    ///
    /// As [`hidden`](Self::hidden).
    pub fn next(&self, ids: Tensor<2, Int>, cache: &mut Cache) -> Tensor<2> {
        let [_, time] = ids.dims();
        let last = self.following(ids, cache).narrow(1, time - 1, 1);
        let logits = self.lm_head().logits(last);
        logits.expect("the decoder's own head").squeeze_dim(1)
    }

    /// A reward model's rewards `[batch, time]`, one for each beginning of each row.
    ///
    /// # Panics
    ///
    /// Panics if this is no reward model, and as [`hidden`](Self::hidden).
    pub fn rewards(&self, ids: Tensor<2, Int>) -> Tensor<2> {
        let score = self.score.as_ref().expect("a reward model");
        score
            .forward(self.following(ids, &mut self.cache()))
            .squeeze_dim(2)
    }

    /// Puts a new layer from a hidden state to a reward in the place of the head.
    pub fn into_reward_model(mut self) -> Self {
        if self.score.is_none() {
            let device = self.embedding.weight.device();
            self.score = Some(Projection::new(self.config.hidden, 1, false, &device));
            self.head = None;
            self.config.output = OutputLayer::Reward;
        }
        self
    }

    /// An empty cache, with which a conversation begins.
    pub fn cache(&self) -> Cache {
        vec![KeysValues::default(); self.layers.len()]
    }

    /// That no token looks back further than the model does.
    fn check_window(&self, tokens: usize) {
        if let Some(window) = self.config.window {
            assert!(
                tokens <= window,
                "{tokens} tokens: this model attends to {window}, and the window is not \
                 implemented; cut the sequences"
            );
        }
    }

    /// Hidden states of tokens at `positions`, `[batch or 1, time]`.
    fn states(
        &self,
        ids: Tensor<2, Int>,
        positions: Tensor<2, Int>,
        visible: Visible<'_>,
        cache: &mut Cache,
    ) -> Tensor<3> {
        let dtype = self.embedding.weight.val().dtype();
        let (rope, head_dim) = (&self.config.rope, self.config.head_dim);
        let places = Places {
            rotary: Rotary::new(positions, rope, head_dim, dtype),
            visible,
        };
        let mut x = self.embedding.forward(ids);
        if self.config.gemma {
            x = x * (self.config.hidden as f64).sqrt();
        }
        for (layer, past) in self.layers.iter().zip(cache) {
            x = layer.forward(x, &places, past, &self.config);
        }
        self.norm.forward(x)
    }
}

impl Layer {
    fn forward(
        &self,
        x: Tensor<3>,
        places: &Places<'_>,
        past: &mut KeysValues,
        config: &DecoderConfig,
    ) -> Tensor<3> {
        let after = |norm: &Option<RmsNorm>, y: Tensor<3>| match norm {
            Some(norm) => norm.forward(y),
            None => y,
        };
        let y = self.attention(self.input_norm.forward(x.clone()), places, past, config);
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

    fn attention(
        &self,
        x: Tensor<3>,
        places: &Places<'_>,
        past: &mut KeysValues,
        config: &DecoderConfig,
    ) -> Tensor<3> {
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
        let query = places.rotary.rotate(query);
        let (key, value) = past.extend(places.rotary.rotate(key), value);
        let scale = ScoreScale {
            divisor: config.attention_divisor,
            softcap: config.attention_softcap,
        };
        let mixed = attend(query, key, value, &places.visible, scale);
        let width = config.heads * config.head_dim;
        self.output
            .forward(mixed.swap_dims(1, 2).reshape([batch, time, width]))
    }
}
