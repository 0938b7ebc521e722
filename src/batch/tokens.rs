//! Pairs of per-token log-probabilities, and what can be done to them before they are summed.

use burn::tensor::{Bool, Tensor};

use super::{Pair, PolicyPair, ReferencedPair};
use crate::error::{InvalidHyperparameter, InvalidInput};
use crate::hyperparameter::fraction;
use crate::log_probs::TokenLogProbs;

impl Pair<TokenLogProbs> {
    /// The two halves of one concatenated `[chosen; rejected]` forward.
    ///
    /// # Errors
    ///
    /// The number of rows is odd.
    pub fn from_concatenated_tokens(log_probs: &TokenLogProbs) -> Result<Self, InvalidInput> {
        let [rows, _] = log_probs.mask().dims();
        Self::halves(log_probs, rows, |start, length| {
            log_probs.rows(start, length)
        })
    }

    /// Sums and lengths of both sides.
    pub fn sequences(&self) -> PolicyPair {
        self.map_ref(TokenLogProbs::sequence)
    }

    /// LD-DPO (Liu et al., 2409.06411): tokens past the shorter completion's length count α.
    ///
    /// ```text
    /// ℓ = Σ_{t ≤ n} ln π(y_t) + α·Σ_{t > n} ln π(y_t)      n = min(len_w, len_l)
    /// ```
    ///
    /// α = 1 changes nothing, α = 0 cuts. Apply it to policy *and* reference. Lengths stay the
    /// completions' own.
    ///
    /// # Errors
    ///
    /// `alpha` is outside \[0, 1\].
    pub fn length_desensitized(&self, alpha: f64) -> Result<PolicyPair, InvalidHyperparameter> {
        fraction("ld_alpha", alpha)?;
        let shorter = self.shorter();
        Ok(self.map_ref(|y| {
            let beyond = y
                .position()
                .greater(shorter.clone().expand(y.mask().shape()));
            y.clone().scale_where(beyond, alpha).sequence()
        }))
    }

    /// SamPO (Lu et al., 2406.10957): the longer completion counts a random subset of its tokens,
    /// as many as the shorter one has.
    ///
    /// `noise` decides which: random numbers of the shape of each side's columns, drawn by you, so
    /// that your seed reproduces them. Use the same for policy and reference. Lengths become
    /// those of the subset.
    ///
    /// # Errors
    ///
    /// `noise` has another shape or device.
    pub fn subsampled(&self, noise: &Pair<Tensor<2>>) -> Result<PolicyPair, InvalidInput> {
        let shorter = self.shorter();
        let side = |name, y: &TokenLogProbs, noise: &Tensor<2>| {
            InvalidInput::check_shape(name, &y.mask().shape(), &noise.shape())?;
            InvalidInput::check_device(name, &y.mask().device(), &noise.device())?;
            let keep = y.smallest(noise.clone(), shorter.clone());
            Ok(y.keep(keep).sequence())
        };
        Ok(Pair {
            chosen: side("noise.chosen", &self.chosen, &noise.chosen)?,
            rejected: side("noise.rejected", &self.rejected, &noise.rejected)?,
        })
    }

    /// Clamps the log-ratio of every token to `low..=high` nats ("humanline" in HALOs); beyond it
    /// a token has no gradient.
    ///
    /// ```text
    /// ρ = Σ_t clamp(ln π(y_t) − ln π°(y_t), low, high)
    /// ```
    ///
    /// # Errors
    ///
    /// `reference` has another shape or device.
    ///
    /// # Panics
    ///
    /// Panics unless `low ≤ high`.
    pub fn clamped_relative_to(
        &self,
        reference: &Self,
        low: f64,
        high: f64,
    ) -> Result<ReferencedPair, InvalidInput> {
        assert!(low <= high, "low ≤ high, not {low} and {high}");
        let clamped = |ours: &TokenLogProbs, theirs: &TokenLogProbs| {
            let (found, expected) = (theirs.log_probs().shape(), ours.log_probs().shape());
            InvalidInput::check_shape("reference", &expected, &found)?;
            let (here, there) = (ours.mask().device(), theirs.mask().device());
            InvalidInput::check_device("reference", &here, &there)?;
            let theirs = theirs.log_probs().without_autodiff();
            let theirs = theirs.cast(ours.log_probs().dtype());
            let ratio = (ours.log_probs() - theirs.clone()).clamp(low, high);
            TokenLogProbs::new(theirs + ratio, ours.mask())
        };
        let policy = Pair {
            chosen: clamped(&self.chosen, &reference.chosen)?,
            rejected: clamped(&self.rejected, &reference.rejected)?,
        };
        policy.sequences().relative_to(reference.sequences())
    }

    /// min(len_w, len_l), `[batch, 1]`.
    fn shorter(&self) -> Tensor<2> {
        let lengths = self.sequences().map(|y| y.lengths());
        lengths.chosen.min_pair(lengths.rejected).unsqueeze_dim(1)
    }
}

impl TokenLogProbs {
    /// 1 for the first counted token of a row, 2 for the second, and so on.
    fn position(&self) -> Tensor<2> {
        let counted = self.log_probs().without_autodiff().ones_like();
        counted.mask_fill(self.mask().bool_not(), 0.0).cumsum(1)
    }

    fn scale_where(self, mask: Tensor<2, Bool>, factor: f64) -> Self {
        let scaled = self.log_probs() * factor;
        let log_probs = self.log_probs().mask_where(mask, scaled);
        Self::new(log_probs, self.mask()).expect("same shape, same device")
    }

    fn keep(&self, mask: Tensor<2, Bool>) -> Self {
        let mask = self.mask().bool_and(mask);
        Self::new(self.log_probs(), mask).expect("same shape, same device")
    }

    /// The `count` counted columns of each row with the smallest `values`.
    fn smallest(&self, values: Tensor<2>, count: Tensor<2>) -> Tensor<2, Bool> {
        let dtype = count.dtype();
        let values = values.mask_fill(self.mask().bool_not(), f64::INFINITY);
        // The rank of a column is where it stands in the order of the values.
        let rank = values.argsort(1).argsort(1).float().cast(dtype);
        let shape = rank.shape();
        rank.lower(count.expand(shape))
    }
}
