//! From tokens to the positions that predict them: column `t` is about token `t + 1`.

use burn::tensor::{Bool, DType, FloatDType, Int, Tensor};

/// Token ids in a type that can be compared with the size of any vocabulary.
///
/// The cast goes by way of f32, which holds 16 bits exactly: burn-remote 0.22.1 cannot cast integers.
pub(super) fn widen(tokens: Tensor<2, Int>) -> Tensor<2, Int> {
    match tokens.dtype() {
        DType::I8 | DType::I16 | DType::U8 | DType::U16 => tokens.cast(FloatDType::F32).int(),
        _ => tokens,
    }
}

/// Moves column `t + 1` to `t`; the last column takes the first's.
pub(super) fn roll_left(tokens: Tensor<2, Int>) -> Tensor<2, Int> {
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
