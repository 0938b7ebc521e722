// What the recipes have in common, for their hidden lines: a language model of nine words, and
// four pairs. `include!` takes no inner documentation, hence these plain comments.

use burn::data::dataloader::batcher::Batcher;
use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor};
use burn_preference::LmHead;
use burn_preference::data::{Collator, Example, PairTokens};
use burn_preference::tokens::Padding;

#[derive(Module, Debug)]
pub struct Model {
    embedding: Embedding,
    head: Linear,
}

impl Model {
    pub fn new(device: &Device) -> Self {
        let mut embedding = EmbeddingConfig::new(9, 4).init(device);
        let mut head = LinearConfig::new(4, 9).with_bias(false).init(device);
        // The same weights in every run.
        let weight = |shape: [usize; 2], start: f64| {
            let values: Vec<f64> = (0..36).map(|i| (1.7 * f64::from(i) + start).sin()).collect();
            let values = burn::tensor::TensorData::new(values, shape);
            burn::module::Param::from_tensor(Tensor::from_data(values, device))
        };
        embedding.weight = weight([9, 4], 0.0);
        head.weight = weight([4, 9], 1.0);
        Self { embedding, head }
    }

    pub fn hidden(&self, ids: Tensor<2, Int>) -> (Tensor<3>, LmHead) {
        (self.embedding.forward(ids), LmHead::from(&self.head))
    }
}

pub fn pairs(device: &Device) -> PairTokens {
    let pair = |i: u32| Example::pair(vec![i], vec![i + 1, 8], vec![i + 2, i, 8]);
    Collator::new(Padding::new(0)).batch((1..5).map(pair).collect(), device)
}
