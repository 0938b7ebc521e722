//! The divergences that compare two models, and the results of a comparison.

use burn::backend::Backend;
use burn::backend::tensor::FloatTensor;

/// Divergence between policy π and reference π° over the vocabulary, at one position.
///
/// [`TokenDiscrepancy`](crate::log_probs::TokenDiscrepancy) computes it. In nats; 0 where the two
/// models agree, never less but for rounding. `m` is the mixture of the two models:
///
/// ```text
/// ForwardKl           KL(π° ‖ π)
/// ReverseKl           KL(π ‖ π°)
/// JensenShannon(β)    β·KL(π° ‖ m) + (1 − β)·KL(π ‖ m),    m = β·π° + (1 − β)·π
///
/// KL(p ‖ q) = Σ_v p(v)·ln(p(v)/q(v))
/// ```
///
/// | kind | bounded by | where π° rules a word out that π has | where π rules out a word of π° |
/// |---|---|---|---|
/// | `ForwardKl` | | finite | ∞, with a finite gradient |
/// | `ReverseKl` | | ∞, and the gradient is not finite | finite |
/// | `JensenShannon` | −β·ln β − (1 − β)·ln(1 − β) | finite | finite |
///
/// A word is ruled out by a logit of −∞. A word that both rule out costs nothing.
///
/// # Other libraries
///
/// β is that of TRL's `generalized_jsd_loss`, of Liger's JSD and of GKD (2306.13649). Their β = 0
/// is not the limit of this formula, which is 0, but KL(π° ‖ π); and their β = 1 is KL(π ‖ π°).
/// Both are kinds of their own here. `JensenShannon(β)/β` tends to KL(π° ‖ π) for β → 0, and
/// `JensenShannon(β)/(1 − β)` to KL(π ‖ π°) for β → 1.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Discrepancy {
    /// KL(π° ‖ π): the policy covers whatever the reference says. Supervised distillation.
    ForwardKl,
    /// KL(π ‖ π°): the policy stays within what the reference says. The regulariser of
    /// reinforcement learning, and on-policy distillation.
    ReverseKl,
    /// The generalised Jensen–Shannon divergence; the field is β, between 0.001 and 0.999. Nearer to
    /// the ends f32 loses the digits of ln(m/p), and the divergence itself: take a KL there.
    JensenShannon(f64),
}

/// Results of a comparison of two models. Tensors are f32 or f64.
#[derive(Debug, Clone)]
pub(super) struct Comparison<B: Backend> {
    /// The divergence of each row, `[rows]`.
    pub discrepancy: FloatTensor<B>,
    /// Numbers for the backward, `[rows, 5]`: the largest logit m and `ln Σ exp(x − m)` of the
    /// policy, the same two of the reference, and the mean E under the policy:
    ///
    /// ```text
    /// ForwardKl        E = 0
    /// ReverseKl        E = Σ p·ln(p/p°)
    /// JensenShannon    E = Σ p·ln(p/m)
    /// ```
    pub kept: FloatTensor<B>,
    /// The gradient of each divergence with respect to its own hidden state, `[rows, hidden]`, if
    /// asked for. Only for heads.
    pub slope: Option<FloatTensor<B>>,
}

/// Columns of [`Comparison::kept`].
#[cfg(any(feature = "flex", feature = "_cube"))]
pub(super) const KEPT: usize = 5;
