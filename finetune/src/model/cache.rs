//! Keys and values that sampling keeps.

use burn::tensor::Tensor;

/// Keys and values of the tokens so far, layer by layer: what sampling need not compute again.
pub type Cache = Vec<KeysValues>;

/// Keys and values of the tokens so far, in one layer.
#[derive(Debug, Clone, Default)]
pub struct KeysValues(Option<(Tensor<4>, Tensor<4>)>);

impl KeysValues {
    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |(keys, _)| keys.dims()[2])
    }

    /// Adds those of the tokens that follow, and returns all.
    pub(super) fn extend(&mut self, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let all = match self.0.take() {
            Some((k, v)) => (Tensor::cat(vec![k, key], 2), Tensor::cat(vec![v, value], 2)),
            None => (key, value),
        };
        self.0 = Some(all.clone());
        all
    }
}
