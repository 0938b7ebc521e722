//! The smallest language model: what follows a token depends on this one alone.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig, Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_preference::LmHead;

#[derive(Module, Debug)]
pub struct Bigram {
    pub embedding: Embedding,
    pub head: Linear,
    pub dropout: Dropout,
}

impl Bigram {
    /// The same weights for a `seed`, and not of the device's generator: that is shared by all
    /// tests.
    pub fn new([vocab, width]: [usize; 2], seed: u32, device: &Device) -> Self {
        let mut embedding = EmbeddingConfig::new(vocab, width).init(device);
        let mut head = LinearConfig::new(width, vocab).init(device);
        embedding.weight = param([vocab, width], 3 * seed, device);
        head.weight = param([width, vocab], 3 * seed + 1, device);
        head.bias = Some(param([vocab], 3 * seed + 2, device));
        Self {
            embedding,
            head,
            dropout: DropoutConfig::new(0.0).init(),
        }
    }

    /// Between embedding and head, on in training.
    pub fn with_dropout(self, prob: f64) -> Self {
        Self {
            dropout: DropoutConfig::new(prob).init(),
            ..self
        }
    }

    pub fn hidden(&self, ids: Tensor<2, Int>) -> (Tensor<3>, LmHead) {
        let hidden = self.dropout.forward(self.embedding.forward(ids));
        (hidden, LmHead::from(&self.head))
    }

    pub fn logits(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.head.forward(self.hidden(ids).0)
    }
}

fn param<const D: usize>(shape: [usize; D], seed: u32, device: &Device) -> Param<Tensor<D>> {
    let value = |i: usize| (i as f64 * 1.7 + f64::from(seed)).sin();
    let values: Vec<f64> = (0..shape.iter().product()).map(value).collect();
    let values = TensorData::new(values, shape);
    Param::from_tensor(Tensor::from_data(values, (device, DType::F32)))
}
