use burn::tensor::{Bool, Device, Int, Tensor};

use super::mask::CompletionMask;
use super::statistics::TokenStatistics;
use super::token::TokenLogProbs;
use crate::error::InvalidInput;
use crate::kernel::Outputs;
use crate::math::upcast;

/// Checks that tokens and their mask are those of a model's output `[batch, time, …]`.
pub(super) fn check_tokens(
    dims: [usize; 2],
    device: &Device,
    tokens: &Tensor<2, Int>,
    mask: &CompletionMask,
) -> Result<(), InvalidInput> {
    InvalidInput::check_shape("tokens", &dims.into(), &tokens.shape())?;
    InvalidInput::check_device("tokens", device, &tokens.device())?;
    mask.check("completion_mask", dims, device)
}

/// The words that positions predict.
pub(super) struct Targets {
    /// 0 where the token is no word.
    pub(super) words: Tensor<1, Int>,
    /// The token is no word.
    outside: Tensor<1, Bool>,
}

impl Targets {
    pub(super) fn new(tokens: Tensor<1, Int>, vocab: usize) -> Self {
        let below = tokens.clone().lower_elem(0);
        let outside = below.bool_or(tokens.clone().greater_equal_elem(vocab as i64));
        Self {
            words: tokens.mask_fill(outside.clone(), 0),
            outside,
        }
    }

    /// The values of the positions; NaN for what is no word.
    pub(super) fn values(&self, values: Tensor<1>) -> Tensor<1> {
        values.mask_fill(self.outside.clone(), f64::NAN)
    }
}

/// Results of one pass over the logits: [`TokenLogProbs`], alone or with [`TokenStatistics`].
pub trait TokenResults: Sized {
    /// The same as kernels give them, a value per row.
    type Outputs: Outputs;

    /// Takes what a kernel gives; `place` puts a value per row at its prediction.
    fn new(outputs: Self::Outputs, place: impl Fn(Tensor<1>) -> TokenLogProbs) -> Self;

    /// The results of no position, `[0, time − 1]`. `output` is that of the model, `[0, …]`, whose
    /// graph they keep.
    fn of_no_position(output: Tensor<2>, mask: &CompletionMask) -> Self {
        let none = upcast(output.sum_dim(1).squeeze_dim(1));
        Self::new(Self::Outputs::of_no_row(none), |none| {
            let mask = mask.predictions();
            TokenLogProbs::masked(none.reshape(mask.shape()), mask)
        })
    }
}

impl TokenResults for TokenLogProbs {
    type Outputs = Tensor<1>;

    fn new(outputs: Tensor<1>, place: impl Fn(Tensor<1>) -> TokenLogProbs) -> Self {
        place(outputs)
    }
}

impl TokenResults for (TokenLogProbs, TokenStatistics) {
    type Outputs = (Tensor<1>, Tensor<2>);

    fn new(outputs: Self::Outputs, place: impl Fn(Tensor<1>) -> TokenLogProbs) -> Self {
        let (log_probs, by_products) = outputs;
        let column = |index| place(by_products.clone().narrow(1, index, 1).squeeze_dim(1));
        let statistics = TokenStatistics::new([0, 1, 2, 3].map(column));
        (place(log_probs), statistics)
    }
}
