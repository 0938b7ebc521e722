//! Changes of the tokens of a pair before they are summed, on both sides at once.

use burn::tensor::{Bool, Tensor};

use super::pair::{Pair, PolicyPair, ReferencedPair};
use crate::error::{InvalidHyperparameter, InvalidInput};
use crate::hyperparameter::fraction;
use crate::log_probs::{RelativeTokenLogProbs, TokenLogProbs};

impl Pair<TokenLogProbs> {
    /// Sums and lengths of both sides.
    pub fn sequences(&self) -> PolicyPair {
        self.map_ref(TokenLogProbs::sequence)
    }

    /// Puts the reference's log-probabilities of the same tokens beside the policy's.
    ///
    /// # Errors
    ///
    /// Shapes or devices differ.
    pub fn relative_to(self, reference: Self) -> Result<Pair<RelativeTokenLogProbs>, InvalidInput> {
        self.zip(reference, TokenLogProbs::relative_to)
    }

    /// Compares with a reference that gives every token log-probability 0. With it, an
    /// objective without a reference can use [`length_desensitized`](Pair::length_desensitized) and
    /// the others: it takes `.sequences().policy()`.
    pub fn with_uniform_reference(self) -> Pair<RelativeTokenLogProbs> {
        self.map(RelativeTokenLogProbs::against_uniform)
    }
}

/// LD-DPO, SamPO, a clamp and token weights: each changes what objectives compare, of policy and
/// reference alike, and they may follow each other. NLL terms (`SftTerm`, ORPO's and CPO's) and
/// the metrics `logps/*` stay those of the whole completions.
///
/// The signature does not let you forget the reference:
///
/// ```compile_fail,E0599
/// # use burn_preference::*;
/// # use burn_preference::batch::Pair;
/// fn of_the_policy_alone(policy: Pair<TokenLogProbs>) {
///     let _ = policy.length_desensitized(0.5);
/// }
/// ```
///
/// ```
/// # use burn_preference::*;
/// # use burn_preference::batch::Pair;
/// fn of_both(
///     policy: Pair<TokenLogProbs>,
///     reference: Pair<TokenLogProbs>,
/// ) -> Result<ReferencedPair, Error> {
///     let tokens = policy.relative_to(reference)?;
///     Ok(tokens.length_desensitized(0.5)?.clamped(-3.0, 3.0)?.sequences())
/// }
/// ```
impl Pair<RelativeTokenLogProbs> {
    /// Sums and lengths of both sides: what objectives take.
    pub fn sequences(&self) -> ReferencedPair {
        self.map_ref(RelativeTokenLogProbs::sequence)
    }

    /// LD-DPO (Liu et al., 2409.06411): tokens beyond the length of the shorter
    /// completion are weighted by α.
    ///
    /// ```text
    /// ℓ = Σ_{t ≤ n} ln π(y_t) + α·Σ_{t > n} ln π(y_t)      n = min(len_w, len_l)
    /// ```
    ///
    /// α = 1 changes nothing, α = 0 drops these tokens. Lengths stay those of the whole completions.
    /// An NLL term is not discounted, as in TRL; LLaMA-Factory discounts it.
    ///
    /// # Errors
    ///
    /// `alpha` is outside \[0, 1\].
    pub fn length_desensitized(self, alpha: f64) -> Result<Self, InvalidHyperparameter> {
        fraction("alpha", alpha)?;
        let shorter = self.shorter();
        Ok(self.map(|y| {
            let position = position(y.policy());
            let beyond = position
                .clone()
                .greater(shorter.clone().expand(position.shape()));
            let weights = position.ones_like().mask_fill(beyond, alpha);
            y.times(&weights)
        }))
    }

    /// SamPO (Lu et al., 2406.10957): the longer completion counts a random subset of its tokens,
    /// as many as the shorter one has, the same ones for policy and reference.
    ///
    /// `noise` decides which: random numbers of the shape of each side's columns, drawn by you, so
    /// that your seed reproduces them. Lengths become those of the subset.
    ///
    /// Burn 0.22.1 has no sort for GPUs. There the subset is found on the host: this waits for the
    /// device, and panics in a browser.
    ///
    /// # Errors
    ///
    /// `noise` has another shape or device.
    pub fn subsampled(self, noise: &Pair<Tensor<2>>) -> Result<Self, InvalidInput> {
        let shorter = self.shorter();
        let side = |name, y: RelativeTokenLogProbs, noise: &Tensor<2>| {
            let mask = y.policy().mask();
            InvalidInput::check_shape(name, &mask.shape(), &noise.shape())?;
            InvalidInput::check_device(name, &mask.device(), &noise.device())?;
            let keep = smallest(noise.clone(), &mask, shorter.clone());
            Ok(y.keep(keep))
        };
        Ok(Self {
            chosen: side("noise.chosen", self.chosen, &noise.chosen)?,
            rejected: side("noise.rejected", self.rejected, &noise.rejected)?,
        })
    }

    /// Clamps both completions, as [`RelativeTokenLogProbs::clamped`] does.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn clamped(self, low: f64, high: f64) -> Result<Self, InvalidHyperparameter> {
        Ok(Self {
            chosen: self.chosen.clamped(low, high)?,
            rejected: self.rejected.clamped(low, high)?,
        })
    }

    /// Weighs both completions, as [`RelativeTokenLogProbs::weighted`] does.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn weighted(self, weights: Pair<Tensor<2>>) -> Result<Self, InvalidInput> {
        self.zip(weights, RelativeTokenLogProbs::weighted)
    }

    /// min(len_w, len_l), `[batch, 1]`.
    fn shorter(&self) -> Tensor<2> {
        let lengths = self.map_ref(|y| y.policy().sequence().lengths());
        lengths.chosen.min_pair(lengths.rejected).unsqueeze_dim(1)
    }
}

/// 1 for the first counted token of a row, 2 for the second, and so on.
fn position(tokens: &TokenLogProbs) -> Tensor<2> {
    let counted = tokens.log_probs().without_autodiff().ones_like();
    counted.mask_fill(tokens.mask().bool_not(), 0.0).cumsum(1)
}

/// The `count` columns of each row with the smallest `values`, of those that `mask` marks.
fn smallest(values: Tensor<2>, mask: &Tensor<2, Bool>, count: Tensor<2>) -> Tensor<2, Bool> {
    let dtype = count.dtype();
    let values = values.mask_fill(mask.clone().bool_not(), f64::INFINITY);
    // The rank of a column is where it stands in the order of the values.
    let rank = values.argsort(1).argsort(1).float().cast(dtype);
    let shape = rank.shape();
    rank.lower(count.expand(shape))
}
