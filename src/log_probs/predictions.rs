use burn::tensor::{Bool, Device, Int, Tensor};

use super::positions::Spread;
use super::shift::{prediction_mask, roll_left, widen};
use super::statistics::TokenStatistics;
use super::token::TokenLogProbs;
use crate::error::InvalidInput;
use crate::kernel::Outputs;
use crate::math::upcast;

/// Predictions of a batch: the positions of a model's output `[batch, time, …]` that predict a
/// counted token, and which token.
pub struct Predictions {
    /// `[batch, time]`. Shifting the small mask left instead of slicing the output saves a copy
    /// of it. The last position predicts nothing.
    mask: Tensor<2, Bool>,
    /// `[batch · time]`: the token that each position predicts; 0 where none counts.
    targets: Tensor<1, Int>,
    /// `[batch, time]`: the token counts, but is no word.
    outside: Tensor<2, Bool>,
}

impl Predictions {
    pub fn new(
        [batch, time, vocab]: [usize; 3],
        device: &Device,
        tokens: Tensor<2, Int>,
        completion_mask: Tensor<2, Bool>,
    ) -> Result<Self, InvalidInput> {
        InvalidInput::check_shape("tokens", &[batch, time].into(), &tokens.shape())?;
        InvalidInput::check_device("tokens", device, &tokens.device())?;
        let mask = prediction_mask([batch, time], device, completion_mask)?;

        let targets = roll_left(widen(tokens));
        let inside = targets
            .clone()
            .greater_equal_elem(0)
            .bool_and(targets.clone().lower_elem(vocab as i64));
        let outside = mask.clone().bool_and(inside.clone().bool_not());
        let readable = mask.clone().bool_and(inside);
        let targets = targets.mask_fill(readable.bool_not(), 0);
        Ok(Self {
            mask,
            targets: targets.reshape([batch * time]),
            outside,
        })
    }

    /// `[batch · time]`
    pub fn targets(&self) -> Tensor<1, Int> {
        self.targets.clone()
    }

    /// `[batch · time]`
    pub fn counted(&self) -> Tensor<1, Bool> {
        let [batch, time] = self.mask.dims();
        self.mask.clone().reshape([batch * time])
    }

    /// Takes a value per position, `[batch · time]`, to one per prediction; NaN for what is no
    /// word.
    pub fn log_probs(&self, values: Tensor<1>) -> TokenLogProbs {
        let values = values.reshape(self.mask.shape());
        let values = values.mask_fill(self.outside.clone(), f64::NAN);
        without_last(values, self.mask.clone())
    }

    /// [`log_probs`](Self::log_probs) of each by-product, `[batch · time, 4]`.
    fn statistics(&self, values: &Tensor<2>) -> TokenStatistics {
        let column = |index| self.log_probs(values.clone().narrow(1, index, 1).squeeze_dim(1));
        TokenStatistics::new([0, 1, 2, 3].map(column))
    }
}

/// Cuts off the last position, which predicts nothing.
pub(super) fn without_last(values: Tensor<2>, mask: Tensor<2, Bool>) -> TokenLogProbs {
    let [_, time] = values.dims();
    TokenLogProbs::masked(values.narrow(1, 0, time - 1), mask.narrow(1, 0, time - 1))
}

/// Results of one pass over the logits: [`TokenLogProbs`], alone or with [`TokenStatistics`].
pub trait TokenResults: Sized {
    /// The same for positions, as kernels give them.
    type Outputs: Outputs + Spread;

    /// Takes values of all positions of a batch, `[batch · time, …]`.
    fn new(predictions: &Predictions, values: Self::Outputs) -> Self;

    /// The results of no position. `output` is that of the model, whose graph they keep.
    fn of_no_position(predictions: &Predictions, output: Tensor<2>) -> Self {
        let none = upcast(output.sum_dim(1).squeeze_dim(1));
        Self::new(predictions, Self::Outputs::of_no_row(none))
    }
}

impl TokenResults for TokenLogProbs {
    type Outputs = Tensor<1>;

    fn new(predictions: &Predictions, values: Tensor<1>) -> Self {
        predictions.log_probs(values)
    }
}

impl TokenResults for (TokenLogProbs, TokenStatistics) {
    type Outputs = (Tensor<1>, Tensor<2>);

    fn new(predictions: &Predictions, (values, by_products): Self::Outputs) -> Self {
        let log_probs = predictions.log_probs(values);
        (log_probs, predictions.statistics(&by_products))
    }
}
