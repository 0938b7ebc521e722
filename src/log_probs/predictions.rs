use burn::tensor::{Bool, DType, Device, FloatDType, Int, Tensor};

use super::{TokenLogProbs, TokenStatistics};
use crate::error::InvalidInput;

/// Log-probabilities, and what else the same walk tells where it was asked for.
pub(crate) type Walked = (TokenLogProbs, Option<TokenStatistics>);

/// Which rows of a model's output `[batch, time, …]` predict a counted token, and which token.
pub(super) struct Predictions {
    /// `[batch, time]`. Shifting the small mask left instead of slicing the output saves a copy
    /// of it. The last row predicts nothing.
    mask: Tensor<2, Bool>,
    /// `[batch · time]`: the token that each row predicts; 0 where none counts.
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

    /// From a value per row, `[batch · time]`, to one per prediction; NaN for what is no word.
    pub fn log_probs(&self, values: Tensor<1>) -> TokenLogProbs {
        let values = values.reshape(self.mask.shape());
        let values = values.mask_fill(self.outside.clone(), f64::NAN);
        finish(values, self.mask.clone())
    }

    /// The same of the by-products, `[batch · time, 4]`.
    pub fn statistics(&self, values: &Tensor<2>) -> TokenStatistics {
        let column = |index| self.log_probs(values.clone().narrow(1, index, 1).squeeze_dim(1));
        TokenStatistics::new([0, 1, 2, 3].map(column))
    }
}

/// `[batch, time]`: true where a row predicts a token that counts.
pub(super) fn prediction_mask(
    [batch, time]: [usize; 2],
    device: &Device,
    completion_mask: Tensor<2, Bool>,
) -> Result<Tensor<2, Bool>, InvalidInput> {
    let expected = [batch, time].into();
    InvalidInput::check_shape("completion_mask", &expected, &completion_mask.shape())?;
    InvalidInput::check_device("completion_mask", device, &completion_mask.device())?;
    Ok(shift_left(completion_mask))
}

/// Cuts off the last row, which predicts nothing.
pub(super) fn finish(values: Tensor<2>, mask: Tensor<2, Bool>) -> TokenLogProbs {
    let [_, time] = values.dims();
    TokenLogProbs::masked(values.narrow(1, 0, time - 1), mask.narrow(1, 0, time - 1))
}

/// Ids in a type that can be compared with the size of any vocabulary.
///
/// By way of f32, which holds 16 bits exactly: burn-remote 0.22.1 cannot cast integers.
fn widen(tokens: Tensor<2, Int>) -> Tensor<2, Int> {
    match tokens.dtype() {
        DType::I8 | DType::I16 | DType::U8 | DType::U16 => tokens.cast(FloatDType::F32).int(),
        _ => tokens,
    }
}

/// Column `t` takes what stood at `t + 1`; the last column takes the first's.
fn roll_left(tokens: Tensor<2, Int>) -> Tensor<2, Int> {
    let [_, time] = tokens.dims();
    let first = tokens.clone().narrow(1, 0, 1);
    Tensor::cat(vec![tokens.narrow(1, 1, time - 1), first], 1)
}

/// As [`roll_left`], but the last column is false: nothing is predicted there.
pub(super) fn shift_left(mask: Tensor<2, Bool>) -> Tensor<2, Bool> {
    let [_, time] = mask.dims();
    let last = mask.clone().narrow(1, 0, 1);
    let last = last.clone().bool_and(last.bool_not());
    Tensor::cat(vec![mask.narrow(1, 1, time - 1), last], 1)
}
