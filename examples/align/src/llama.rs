//! A decoder-only transformer of the Llama family: RMS norms, rotary positions on interleaved
//! pairs, grouped-query attention, SwiGLU. Small, plain Burn, and good for real weights: this example
//! loads llama2.c's files into it, the tests of burn-preference a model of Hugging Face.

use burn::module::{Module, Param};
use burn::nn::{
    Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig, RotaryEncoding,
    RotaryEncodingConfig,
};
use burn::tensor::activation::silu;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

pub use finetune::attention::Visible;
use finetune::attention::{ScoreScale, attend};

/// Sizes of a model.
#[derive(Debug, Clone)]
pub struct LlamaConfig {
    pub dim: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub vocab: usize,
    pub max_time: usize,
    /// Whether the head shares the embedding's weights.
    pub tied: bool,
    /// Base of the rotary positions: 1e4 almost everywhere.
    pub rope_base: f32,
}

#[derive(Module, Debug)]
pub struct Llama {
    pub embedding: Embedding,
    pub blocks: Vec<Block>,
    pub norm: RmsNorm,
    pub head: Option<Linear>,
    pub rope: RotaryEncoding,
}

#[derive(Module, Debug)]
pub struct Block {
    pub attention_norm: RmsNorm,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    pub mlp_norm: RmsNorm,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
    pub heads: usize,
    pub kv_heads: usize,
}

/// Keys and values of the positions so far, one pair per block: for sampling.
pub type Cache = Vec<Option<(Tensor<4>, Tensor<4>)>>;

impl LlamaConfig {
    pub fn init(&self, device: &Device) -> Llama {
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        let norm = || RmsNormConfig::new(self.dim).init(device);
        let kv_dim = self.dim / self.heads * self.kv_heads;
        let block = |_| Block {
            attention_norm: norm(),
            query: linear(self.dim, self.dim),
            key: linear(self.dim, kv_dim),
            value: linear(self.dim, kv_dim),
            output: linear(self.dim, self.dim),
            mlp_norm: norm(),
            gate: linear(self.dim, self.hidden),
            up: linear(self.dim, self.hidden),
            down: linear(self.hidden, self.dim),
            heads: self.heads,
            kv_heads: self.kv_heads,
        };
        Llama {
            embedding: EmbeddingConfig::new(self.vocab, self.dim).init(device),
            blocks: (0..self.layers).map(block).collect(),
            norm: norm(),
            head: (!self.tied).then(|| linear(self.dim, self.vocab)),
            rope: RotaryEncodingConfig::new(self.max_time, self.dim / self.heads)
                .with_theta(self.rope_base)
                .init(device),
        }
    }

    /// Copies weights in from flat f32 rows `[out, in]`, asked for by the names that
    /// Hugging Face gives them.
    ///
    /// `interleaved` says that rotary pairs are neighbours (llama2.c); Hugging Face's own
    /// files keep the two halves of a head apart, so their query and key rows are reordered.
    pub fn load(
        &self,
        device: &Device,
        interleaved: bool,
        mut weight: impl FnMut(&str) -> Vec<f32>,
    ) -> Llama {
        let mut model = self.init(device);
        let head_dim = self.dim / self.heads;
        let mut matrix = |name: &str, like: &Param<Tensor<2>>, rotary: bool| {
            let [from, to] = like.val().dims();
            let mut rows = weight(name);
            if rotary && !interleaved {
                let half = head_dim / 2;
                let source = |i: usize| i / head_dim * head_dim + i % head_dim / 2 + i % 2 * half;
                rows = (0..to)
                    .flat_map(|i| rows[source(i) * from..][..from].to_vec())
                    .collect();
            }
            // Stored as it is used: what is composed with adapters later has this layout as well,
            // and products of another layout round otherwise.
            let columns = (0..from).flat_map(|i| rows[i..].iter().step_by(from).copied());
            let columns = TensorData::new(columns.collect::<Vec<f32>>(), [from, to]);
            Param::from_tensor(Tensor::from_data(columns, device))
        };
        for (i, block) in model.blocks.iter_mut().enumerate() {
            for (linear, name, rotary) in [
                (&mut block.query, "self_attn.q_proj", true),
                (&mut block.key, "self_attn.k_proj", true),
                (&mut block.value, "self_attn.v_proj", false),
                (&mut block.output, "self_attn.o_proj", false),
                (&mut block.gate, "mlp.gate_proj", false),
                (&mut block.up, "mlp.up_proj", false),
                (&mut block.down, "mlp.down_proj", false),
            ] {
                let name = format!("model.layers.{i}.{name}.weight");
                linear.weight = matrix(&name, &linear.weight, rotary);
            }
        }
        if let Some(head) = &mut model.head {
            head.weight = matrix("lm_head.weight", &head.weight, false);
        }
        let embedding =
            TensorData::new(weight("model.embed_tokens.weight"), [self.vocab, self.dim]);
        model.embedding.weight = Param::from_tensor(Tensor::from_data(embedding, device));
        let mut norm = |name: &str| {
            let gamma = Tensor::from_data(TensorData::new(weight(name), [self.dim]), device);
            Param::from_tensor(gamma)
        };
        for (i, block) in model.blocks.iter_mut().enumerate() {
            let name = |norm| format!("model.layers.{i}.{norm}.weight");
            block.attention_norm.gamma = norm(&name("input_layernorm"));
            block.mlp_norm.gamma = norm(&name("post_attention_layernorm"));
        }
        model.norm.gamma = norm("model.norm.weight");
        model
    }
}

/// Positions of tokens, and the others that each of them may look at.
struct Places<'a> {
    /// Of the rotary positions, `[batch or 1, 1, time, head / 2, 1]`.
    cos: Tensor<5>,
    sin: Tensor<5>,
    visible: Visible<'a>,
}

impl Llama {
    /// Logits `[batch, time, vocab]` of right-padded tokens `[batch, time]`.
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let x = self.hidden(tokens);
        self.logits(x)
    }

    /// Logits of `tokens`, which follow the `start` positions that `cache` holds.
    pub fn forward_cached(
        &self,
        tokens: Tensor<2, Int>,
        start: usize,
        cache: &mut Cache,
    ) -> Tensor<3> {
        let places = self.following(&tokens, start);
        let x = self.states(tokens, &places, cache);
        self.logits(x)
    }

    /// Hidden states, which the head turns into logits.
    pub fn hidden(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let places = self.following(&tokens, 0);
        self.states(tokens, &places, &mut vec![None; self.blocks.len()])
    }

    /// Hidden states of packed rows, whose tokens are at `positions`, `[batch, time]`.
    pub fn hidden_packed(
        &self,
        tokens: Tensor<2, Int>,
        positions: Tensor<2, Int>,
        visible: Visible<'_>,
    ) -> Tensor<3> {
        let places = self.places(positions, visible);
        self.states(tokens, &places, &mut vec![None; self.blocks.len()])
    }

    /// Logits of hidden states.
    pub fn logits(&self, x: Tensor<3>) -> Tensor<3> {
        match &self.head {
            Some(head) => head.forward(x),
            None => x.matmul(self.embedding.weight.val().transpose().unsqueeze()),
        }
    }

    fn states(&self, tokens: Tensor<2, Int>, places: &Places<'_>, cache: &mut Cache) -> Tensor<3> {
        let mut x = self.embedding.forward(tokens);
        for (block, cache) in self.blocks.iter().zip(cache) {
            x = block.forward(x, places, cache);
        }
        self.norm.forward(x)
    }

    /// Tokens that follow `start` others, each of which sees what is before it.
    fn following(&self, tokens: &Tensor<2, Int>, start: usize) -> Places<'static> {
        let [_, time] = tokens.dims();
        let total = start + time;
        let device = tokens.device();
        let positions = Tensor::arange(start as i64..total as i64, &device);
        let future = Tensor::<2, Bool>::tril_mask([time, total], start as i64, &device);
        self.places(positions.unsqueeze(), Visible::Mask(future.unsqueeze()))
    }

    fn places<'a>(&self, positions: Tensor<2, Int>, visible: Visible<'a>) -> Places<'a> {
        let [batch, time] = positions.dims();
        let [_, head, _] = self.rope.freq_complex.dims();
        // Of a pair, the first row is (cos, sin).
        let table = self.rope.freq_complex.clone();
        let table = table.select(0, positions.reshape([batch * time]));
        let table = table.reshape([batch, 1, time, head / 2, 4]);
        Places {
            cos: table.clone().narrow(4, 0, 1),
            sin: table.narrow(4, 1, 1),
            visible,
        }
    }
}

impl Places<'_> {
    /// Rotary positions: neighbours (x, y) become (x·cos − y·sin, y·cos + x·sin).
    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, heads, time, head] = x.dims();
        let pairs = x.reshape([batch, heads, time, head / 2, 2]);
        let [x, y]: [Tensor<5>; 2] = pairs.chunk(2, 4).try_into().expect("pairs");
        let (cos, sin) = (&self.cos, &self.sin);
        let turned = x.clone() * cos.clone() - y.clone() * sin.clone();
        let other = y * cos.clone() + x * sin.clone();
        Tensor::cat(vec![turned, other], 4).reshape([batch, heads, time, head])
    }
}

impl Block {
    fn forward(
        &self,
        x: Tensor<3>,
        places: &Places<'_>,
        cache: &mut Option<(Tensor<4>, Tensor<4>)>,
    ) -> Tensor<3> {
        let x = x.clone() + self.attention(self.attention_norm.forward(x), places, cache);
        let y = self.mlp_norm.forward(x.clone());
        let gated = silu(self.gate.forward(y.clone())) * self.up.forward(y);
        x + self.down.forward(gated)
    }

    fn attention(
        &self,
        x: Tensor<3>,
        places: &Places<'_>,
        cache: &mut Option<(Tensor<4>, Tensor<4>)>,
    ) -> Tensor<3> {
        let [batch, time, dim] = x.dims();
        let head_dim = dim / self.heads;
        let split = |x: Tensor<3>, heads| x.reshape([batch, time, heads, head_dim]).swap_dims(1, 2);
        let query = places.rotate(split(self.query.forward(x.clone()), self.heads));
        let key = places.rotate(split(self.key.forward(x.clone()), self.kv_heads));
        let value = split(self.value.forward(x), self.kv_heads);
        let (key, value) = match cache.take() {
            Some((k, v)) => (Tensor::cat(vec![k, key], 2), Tensor::cat(vec![v, value], 2)),
            None => (key, value),
        };
        *cache = Some((key.clone(), value.clone()));

        let scale = ScoreScale {
            divisor: (head_dim as f64).sqrt(),
            softcap: None,
        };
        let mixed = attend(query, key, value, &places.visible, scale);
        self.output
            .forward(mixed.swap_dims(1, 2).reshape([batch, time, dim]))
    }
}
