//! The functions of one number that a backend may compute in one pass, and where they are held.

/// Log-probabilities are clamped to at most −1e-30 where their complement is needed: the largest
/// value whose `1 − eˣ` is still a normal number in f32.
pub(super) const MAX_LOG_PROB: f64 = -1e-30;

/// Past this a square would overflow f32.
pub(super) const MAX_SQUARED: f64 = 1e18;

/// A function of `math` of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Softplus,
    LogisticLoss,
    Sigmoid,
    LogOdds,
    BoundedSquare,
}
