//! Results of a forward and of a backward.

use burn::backend::Backend;
use burn::backend::tensor::FloatTensor;

/// Number of by-products of a row. Their order is: entropy, ln Σp², top-1 hit, mean logit.
pub(super) const STATISTICS: usize = 4;

/// Data that a forward saves for its backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Save {
    /// Nothing, because there is no backward.
    Nothing,
    /// The gradient of each log-probability with respect to its own hidden state.
    ///
    /// A frozen head needs nothing else: row n of the backward is `g_n` times row n of the slope.
    Slope,
    /// The normaliser, and as many tiles of logits as fit into this number of bytes.
    Tiles(usize),
}

/// Results of a forward. Tensors are f32 or f64, with the shape `[rows]` unless another one is
/// given.
#[derive(Debug, Clone)]
pub(super) struct Forward<B: Backend> {
    pub log_probs: FloatTensor<B>,
    /// Normaliser, `[rows, 2]`: the largest logit m, and `ln Σ exp(x − m)`. Both are stored, and not their sum
    /// (the log-sum-exp), because the sum would round at the magnitude of the logits.
    pub normalizer: FloatTensor<B>,
    /// By-products, `[rows, 4]`, if asked for.
    pub statistics: Option<FloatTensor<B>>,
    /// Slope, `[rows, hidden]`, only with [`Save::Slope`].
    pub slope: Option<FloatTensor<B>>,
    /// Kept logits, only with [`Save::Tiles`]. Each kernel chooses the layout.
    pub tiles: Vec<FloatTensor<B>>,
}

impl<B: Backend> Forward<B> {
    /// The two outputs of an operation: log-probabilities and by-products.
    pub(super) fn into_outputs(self) -> (FloatTensor<B>, FloatTensor<B>) {
        // An operation always returns two tensors. Without by-products, the second one is another
        // handle to the log-probabilities.
        let statistics = self.statistics.unwrap_or_else(|| self.log_probs.clone());
        (self.log_probs, statistics)
    }
}

/// Gradients of hidden states, weight and bias; `None` for a gradient that is not wanted.
pub(super) type HeadGradients<B> = [Option<FloatTensor<B>>; 3];
