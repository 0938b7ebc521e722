//! One decoder for all families.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, RmsNorm, RmsNormConfig};
use burn::tensor::activation::{gelu_approximate, silu};
use burn::tensor::{Bool, DType, Device, FloatDType, Int, Tensor, TensorData};
use burn_preference::LmHead;
use burn_preference::tokens::PackedBatch;

use crate::attention::{Scores, Sees, attend};
use crate::config::{Activation, DecoderConfig, Rope, Top};
use crate::projection::Projection;

/// A decoder-only transformer and the head above it.
#[derive(Module, Debug)]
pub struct Decoder {
    /// `[vocab, hidden]`
    pub embedding: Embedding,
    /// From the first one on.
    pub layers: Vec<Layer>,
    /// Before the head.
    pub norm: RmsNorm,
    /// From hidden states to logits; none where it is the embedding, or where there are none.
    pub head: Option<Projection>,
    /// From a hidden state to a reward, of a reward model.
    pub score: Option<Projection>,
    #[module(skip)]
    config: DecoderConfig,
}

/// Attention and feed-forward, each added to what it was computed from.
#[derive(Module, Debug)]
pub struct Layer {
    /// Before attention.
    pub input_norm: RmsNorm,
    /// Queries.
    pub query: Projection,
    /// Keys.
    pub key: Projection,
    /// Values.
    pub value: Projection,
    /// From heads to hidden states.
    pub output: Projection,
    /// Of each head of queries (Qwen 3).
    pub query_norm: Option<RmsNorm>,
    /// Of each head of keys.
    pub key_norm: Option<RmsNorm>,
    /// Behind attention (Gemma 2).
    pub after_attention: Option<RmsNorm>,
    /// Before the feed-forward layer.
    pub mlp_norm: RmsNorm,
    /// Of the feed-forward layer.
    pub gate: Projection,
    /// What the gate multiplies.
    pub up: Projection,
    /// Back to hidden states.
    pub down: Projection,
    /// Behind it (Gemma 2).
    pub after_mlp: Option<RmsNorm>,
}

/// What sampling keeps of the tokens so far, layer by layer.
pub type Cache = Vec<Past>;

/// Keys and values of the tokens so far, in one layer.
#[derive(Debug, Clone, Default)]
pub struct Past(Option<(Tensor<4>, Tensor<4>)>);

impl Past {
    /// Tokens.
    fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |(keys, _)| keys.dims()[2])
    }

    /// With those of the tokens that follow.
    fn then(&mut self, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let all = match self.0.take() {
            Some((k, v)) => (Tensor::cat(vec![k, key], 2), Tensor::cat(vec![v, value], 2)),
            None => (key, value),
        };
        self.0 = Some(all.clone());
        all
    }
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
            head: (self.top == Top::Head).then(|| linear(self.hidden, self.vocab, false)),
            score: (self.top == Top::Reward).then(|| linear(self.hidden, 1, false)),
            config: self.clone(),
        }
    }
}

impl Decoder {
    /// What it was made from.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The head, with what it does to logits. A reward model has the embedding's, which nothing
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

    /// The same of packed rows, without computing what a mask would hide.
    ///
    /// # Panics
    ///
    /// Panics if a sequence is longer than the model's sliding window.
    pub fn hidden_packed(&self, batch: &PackedBatch) -> (Tensor<3>, LmHead) {
        self.packed(batch, Sees::Segments(&batch.segments))
    }

    /// The same under a mask over all of each row.
    ///
    /// # Panics
    ///
    /// As [`hidden_packed`](Self::hidden_packed).
    pub fn hidden_masked(&self, batch: &PackedBatch) -> (Tensor<3>, LmHead) {
        self.packed(batch, Sees::Mask(batch.attention_mask()))
    }

    fn packed(&self, batch: &PackedBatch, sees: Sees<'_>) -> (Tensor<3>, LmHead) {
        let seen = batch
            .segments
            .iter()
            .map(|s| s.prompt.len() + s.tokens.len());
        self.check_window(seen.max().unwrap_or(0));
        let (ids, positions) = (batch.ids.clone(), batch.positions.clone());
        let states = self.states(ids, positions, sees, &mut self.cache());
        (states, self.lm_head())
    }

    /// Hidden states of tokens that follow those of `cache`, and the cache with them.
    ///
    /// # Panics
    ///
    /// As [`hidden`](Self::hidden).
    pub fn following(&self, ids: Tensor<2, Int>, cache: &mut Cache) -> Tensor<3> {
        let ([_, time], device) = (ids.dims(), ids.device());
        let start = cache.first().map_or(0, Past::len);
        let total = start + time;
        self.check_window(total);
        let positions = Tensor::<1, Int>::arange(start as i64..total as i64, &device);
        let future = Tensor::<2, Bool>::tril_mask([time, total], start as i64, &device);
        let sees = Sees::Mask(future.unsqueeze());
        self.states(ids, positions.unsqueeze(), sees, cache)
    }

    /// Logits `[batch, vocab]` of the word after `ids`, which follow those of `cache`: for sampling.
    ///
    /// # Panics
    ///
    /// As [`hidden`](Self::hidden).
    pub fn next(&self, ids: Tensor<2, Int>, cache: &mut Cache) -> Tensor<2> {
        let [_, time] = ids.dims();
        let last = self.following(ids, cache).narrow(1, time - 1, 1);
        let logits = match &self.head {
            Some(head) => head.forward(last),
            None => last.matmul(self.embedding.weight.val().transpose().unsqueeze()),
        };
        let logits = logits.squeeze_dim(1);
        match self.config.logit_softcap {
            Some(cap) => (logits * cap.recip()).tanh() * cap,
            None => logits,
        }
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

    /// The same body, with a new head of one number instead of words.
    pub fn into_reward_model(mut self) -> Self {
        if self.score.is_none() {
            let device = self.embedding.weight.device();
            self.score = Some(Projection::new(self.config.hidden, 1, false, &device));
            self.head = None;
            self.config.top = Top::Reward;
        }
        self
    }

    /// Nothing yet: what a conversation begins with.
    pub fn cache(&self) -> Cache {
        vec![Past::default(); self.layers.len()]
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
        sees: Sees<'_>,
        cache: &mut Cache,
    ) -> Tensor<3> {
        let places = self.places(positions, sees);
        let mut x = self.embedding.forward(ids);
        if self.config.gemma {
            x = x * (self.config.hidden as f64).sqrt();
        }
        for (layer, past) in self.layers.iter().zip(cache) {
            x = layer.forward(x, &places, past, &self.config);
        }
        self.norm.forward(x)
    }

    fn places<'a>(&self, positions: Tensor<2, Int>, sees: Sees<'a>) -> Places<'a> {
        let [batch, time] = positions.dims();
        let frequencies = frequencies(&self.config.rope, self.config.head_dim);
        let half = frequencies.len();
        let frequencies = TensorData::new(frequencies, [1, 1, 1, half]);
        let device = positions.device();
        let frequencies = Tensor::<4>::from_data(frequencies, (&device, DType::F32));
        // A position of 16 bits would be rounded.
        let positions = positions.float().cast(FloatDType::F32);
        let angles = positions.reshape([batch, 1, time, 1]) * frequencies;
        let dtype = self.embedding.weight.val().dtype();
        let [cos, sin] = [angles.clone().cos(), angles.sin()].map(|x| x.cast(dtype));
        Places { cos, sin, sees }
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
    fn forward(
        &self,
        x: Tensor<3>,
        places: &Places<'_>,
        past: &mut Past,
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
        past: &mut Past,
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
        let query = places.rotate(query);
        let (key, value) = past.then(places.rotate(key), value);
        let scores = Scores {
            divisor: config.attention_divisor,
            softcap: config.attention_softcap,
        };
        let mixed = attend(query, key, value, &places.sees, scores);
        let width = config.heads * config.head_dim;
        self.output
            .forward(mixed.swap_dims(1, 2).reshape([batch, time, width]))
    }
}
