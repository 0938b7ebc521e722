use burn::tensor::{Bool, FloatDType, Tensor};

use super::head::LmHead;
use super::logits::check_logits;
use super::mask::CompletionMask;
use super::output::ModelOutput;
use super::packed::{PackedPositions, flat};
use super::positions::CountedPositions;
use super::token::TokenLogProbs;
use crate::error::InvalidInput;
use crate::kernel::{self, Discrepancy};
use crate::math::upcast;

/// Divergence of policy and reference over the vocabulary, at each counted token.
///
/// Which divergence that is, [`Discrepancy`] says. Column `t` belongs to token `t + 1`, predicted
/// from the tokens `0..=t`, as in [`TokenLogProbs`]. Only the policy gets a gradient.
#[derive(Debug, Clone)]
pub struct TokenDiscrepancy {
    /// The divergences stand where log-probabilities usually do.
    values: TokenLogProbs,
}

/// Output of a model that can be compared with another one's: logits, or hidden states and a head.
///
/// Policy and reference have the same type of output. It is sealed.
pub trait ComparableOutput: ModelOutput + sealed::ComparableOutput {}

mod sealed {
    use super::{CompletionMask, Discrepancy, InvalidInput, PackedPositions, TokenLogProbs};

    pub trait ComparableOutput: Sized {
        /// Divergences of a padded batch.
        fn compare(
            self,
            reference: Self,
            kind: Discrepancy,
            completion_mask: &CompletionMask,
        ) -> Result<TokenLogProbs, InvalidInput>;

        /// Divergences of a packed batch, in the rows of the padded one.
        fn compare_packed(
            self,
            reference: Self,
            kind: Discrepancy,
            positions: &PackedPositions,
        ) -> Result<TokenLogProbs, InvalidInput>;
    }
}

impl TokenDiscrepancy {
    /// Compares the outputs of two causal models over the same sequences: logits, or hidden states
    /// and the head of each. The shift happens here.
    ///
    /// Take hidden states and heads, `(hidden, head)`, where you can. Positions that predict no
    /// counted token are dropped before the products with the heads, and the logits of both models
    /// are computed block by block. Policy and reference may have hidden states of different width;
    /// they share the vocabulary. A product is one of 2·positions·hidden·vocab operations, of one
    /// of the models:
    ///
    /// | head of the policy | products, forward and backward | kept from forward to backward |
    /// |---|---|---|
    /// | no gradient | 2 | nothing |
    /// | frozen, hidden states trained | 3 | a number per hidden state |
    /// | trained | 6 | five numbers per position |
    ///
    /// # Shapes
    ///
    /// - `policy`, `reference`: `[batch, time, vocab]` or `[batch, time, hidden]`, aligned as in
    ///   [`TokenLogProbs::from_output`]. Logits are final: divided by a temperature already, if
    ///   there is one; a head does it itself ([`LmHead::with_temperature`])
    /// - `completion_mask`: `[batch, time]`; with heads a tensor is read back ([`CompletionMask`])
    ///
    /// # Numerics
    ///
    /// bf16 and f16 logits are upcast to f32 before the normaliser. Each value is a sum of terms
    /// that are not negative but for their rounding, so it keeps its digits where the two models are nearly equal. The
    /// output at positions that do not count may be anything, NaN included. A NaN at one that counts
    /// makes a NaN.
    ///
    /// # Errors
    ///
    /// As [`TokenLogProbs::from_output`], for the policy and for the `reference`. The vocabularies
    /// differ, or the batches do. β of [`Discrepancy::JensenShannon`] is not between 0.001
    /// and 0.999.
    ///
    /// # Examples
    ///
    /// ```
    /// use burn::tensor::{Bool, Device, Tensor};
    /// use burn_preference::LmHead;
    /// use burn_preference::log_probs::{Discrepancy, TokenDiscrepancy};
    ///
    /// let device = Device::default();
    /// // Two words and hidden states of one number: logits (0, h).
    /// let head = || LmHead::new(Tensor::from_floats([[0.0], [1.0]], &device));
    /// let model = |h: f32| (Tensor::<3>::from_floats([[[h], [9.0]]], &device), head());
    /// let mask = Tensor::<2, Bool>::from_bool([[false, true]], &device);
    ///
    /// // π = (1/4, 3/4) and π° = (1/2, 1/2).
    /// let (policy, reference) = (model(3.0_f32.ln()), model(0.0));
    /// let kl = TokenDiscrepancy::from_outputs(Discrepancy::ForwardKl, policy, reference, mask)?;
    /// let expected = 0.5 * (2.0_f32).ln() + 0.5 * (2.0_f32 / 3.0).ln(); // 0.1438
    /// assert!((kl.values().into_scalar::<f32>() - expected).abs() < 1e-6);
    /// # Ok::<(), burn_preference::InvalidInput>(())
    /// ```
    pub fn from_outputs<O: ComparableOutput>(
        kind: Discrepancy,
        policy: O,
        reference: O,
        completion_mask: impl Into<CompletionMask>,
    ) -> Result<Self, InvalidInput> {
        check(kind)?;
        let values = policy.compare(reference, kind, &completion_mask.into())?;
        Ok(Self { values })
    }

    /// As [`from_outputs`](Self::from_outputs), of a packed batch.
    pub(crate) fn from_packed<O: ComparableOutput>(
        kind: Discrepancy,
        policy: O,
        reference: O,
        positions: &PackedPositions,
    ) -> Result<Self, InvalidInput> {
        check(kind)?;
        let values = policy.compare_packed(reference, kind, positions)?;
        Ok(Self { values })
    }

    /// The divergences, 0 where [`mask`](Self::mask) is false; `[batch, time − 1]`, nats.
    pub fn values(&self) -> Tensor<2> {
        self.values.log_probs()
    }

    /// Mask of the columns that count, `[batch, time − 1]`.
    pub fn mask(&self) -> Tensor<2, Bool> {
        self.values.mask()
    }

    /// Sum of each sequence, `[batch]`, nats: with [`Discrepancy::ForwardKl`] the column of
    /// [`WithSequenceKl`](crate::batch::WithSequenceKl).
    pub fn sums(&self) -> Tensor<1> {
        self.values.sequence().sum()
    }

    /// Mean over the counted tokens of the whole batch, `[1]`, nats: the loss of distillation. NaN
    /// if no token counts.
    ///
    /// A step in parts divides the sums of all of them by the tokens of all of them instead.
    pub fn mean(&self) -> Tensor<1> {
        let values = self.values();
        let dtype: FloatDType = values.dtype().into();
        let counted = self.mask().float().cast(dtype).sum();
        self.sums().sum() / counted
    }
}

fn check(kind: Discrepancy) -> Result<(), InvalidInput> {
    match kind {
        // β reaches kernels in f32 as well, where 1 − β must not be 0.
        Discrepancy::JensenShannon(beta) if !(0.001..=0.999).contains(&beta) => Err(
            InvalidInput::new("beta", "a number from 0.001 to 0.999", beta),
        ),
        _ => Ok(()),
    }
}

/// Checks that the reference's output is of the same batch as the policy's.
fn check_batch(ours: &Tensor<3>, theirs: &Tensor<3>) -> Result<(), InvalidInput> {
    let [[batch, time, _], [their_batch, their_time, _]] = [ours.dims(), theirs.dims()];
    let found = [their_batch, their_time].into();
    InvalidInput::check_shape("reference", &[batch, time].into(), &found)?;
    InvalidInput::check_device("reference", &ours.device(), &theirs.device())
}

fn check_vocabulary(ours: usize, theirs: usize) -> Result<(), InvalidInput> {
    if ours == theirs {
        return Ok(());
    }
    let expected = format!("the policy's vocabulary of {ours}");
    Err(InvalidInput::new("reference", expected, theirs))
}

/// Divergences of no position, `[0, time − 1]`. `output` is that of the policy, `[0, …]`, whose
/// graph they keep.
fn of_no_position(output: Tensor<2>, mask: &CompletionMask) -> TokenLogProbs {
    let none = upcast(output.sum_dim(1));
    let mask = mask.predictions();
    TokenLogProbs::zero_elsewhere(none.reshape(mask.shape()), mask)
}

fn at_positions(
    values: Tensor<1>,
    mask: &CompletionMask,
    positions: &CountedPositions,
) -> TokenLogProbs {
    TokenLogProbs::zero_elsewhere(positions.spread(values), mask.predictions())
}

impl ComparableOutput for Tensor<3> {}

impl sealed::ComparableOutput for Tensor<3> {
    fn compare(
        self,
        reference: Self,
        kind: Discrepancy,
        mask: &CompletionMask,
    ) -> Result<TokenLogProbs, InvalidInput> {
        let [batch, time, vocab] = check_both(&self, &reference)?;
        mask.check("completion_mask", [batch, time], &self.device())?;
        let all = [batch * time, vocab];
        let ours = self.reshape(all);
        if batch == 0 {
            return Ok(of_no_position(ours, mask));
        }
        let theirs = reference.without_autodiff().reshape(all);
        let counted = mask.predicting().reshape([batch * time]);
        let values = kernel::logits_discrepancy(kind, ours, theirs, counted);
        let values = values.reshape([batch, time]).narrow(1, 0, time - 1);
        Ok(TokenLogProbs::masked(values, mask.predictions()))
    }

    fn compare_packed(
        self,
        reference: Self,
        kind: Discrepancy,
        packed: &PackedPositions,
    ) -> Result<TokenLogProbs, InvalidInput> {
        check_both(&self, &reference)?;
        let ours = flat("logits", self, packed.dims, &packed.device)?;
        let reference = reference.without_autodiff();
        let theirs = flat("reference", reference, packed.dims, &packed.device)?;
        packed.check()?;
        let (mask, positions) = (&packed.completion_mask, &packed.counted);
        if let [0, _] = positions.dims() {
            return Ok(of_no_position(ours, mask));
        }
        let [ours, theirs] = [ours, theirs].map(|logits| positions.take(logits));
        let [rows, _] = ours.dims();
        let all = Tensor::<1>::zeros([rows], &ours.device()).equal_elem(0.0);
        let values = kernel::logits_discrepancy(kind, ours, theirs, all);
        Ok(at_positions(values, mask, positions))
    }
}

/// Checks the logits of both models, and returns their shape.
fn check_both(ours: &Tensor<3>, theirs: &Tensor<3>) -> Result<[usize; 3], InvalidInput> {
    check_logits(ours)?;
    check_batch(ours, theirs)?;
    let [[batch, time, vocab], [_, _, their_vocab]] = [ours.dims(), theirs.dims()];
    check_vocabulary(vocab, their_vocab)?;
    Ok([batch, time, vocab])
}

impl ComparableOutput for (Tensor<3>, LmHead) {}

impl sealed::ComparableOutput for (Tensor<3>, LmHead) {
    fn compare(
        self,
        reference: Self,
        kind: Discrepancy,
        mask: &CompletionMask,
    ) -> Result<TokenLogProbs, InvalidInput> {
        check_heads(&self, &reference)?;
        let [batch, time, width] = self.0.dims();
        mask.check("completion_mask", [batch, time], &self.0.device())?;
        let (hidden, head) = self;
        let hidden = hidden.reshape([batch * time, width]);
        if batch == 0 {
            return Ok(of_no_position(hidden, mask));
        }
        let (theirs, their_head) = reference;
        let [_, _, their_width] = theirs.dims();
        let theirs = theirs.reshape([batch * time, their_width]);
        let positions = mask.positions()?;
        let both = ((hidden, head), (theirs, their_head));
        Ok(from_positions(kind, both, mask, &positions))
    }

    fn compare_packed(
        self,
        reference: Self,
        kind: Discrepancy,
        packed: &PackedPositions,
    ) -> Result<TokenLogProbs, InvalidInput> {
        check_heads(&self, &reference)?;
        let (hidden, head) = self;
        let hidden = flat("hidden", hidden, packed.dims, &packed.device)?;
        let (theirs, their_head) = reference;
        let theirs = flat("reference", theirs, packed.dims, &packed.device)?;
        packed.check()?;
        let (mask, positions) = (&packed.completion_mask, &packed.counted);
        if let [0, _] = positions.dims() {
            return Ok(of_no_position(hidden, mask));
        }
        let both = ((hidden, head), (theirs, their_head));
        Ok(from_positions(kind, both, mask, positions))
    }
}

fn check_heads(
    (ours, our_head): &(Tensor<3>, LmHead),
    (theirs, their_head): &(Tensor<3>, LmHead),
) -> Result<(), InvalidInput> {
    our_head.check(ours)?;
    check_batch(ours, theirs)?;
    their_head.check(theirs)?;
    let ([vocab, _], [their_vocab, _]) = (our_head.dims(), their_head.dims());
    check_vocabulary(vocab, their_vocab)
}

/// Divergences at the counted `positions` of hidden states `[positions, hidden]` under their heads.
fn from_positions(
    kind: Discrepancy,
    (policy, reference): ((Tensor<2>, LmHead), (Tensor<2>, LmHead)),
    mask: &CompletionMask,
    positions: &CountedPositions,
) -> TokenLogProbs {
    let (ours, our_head) = policy;
    let (theirs, their_head) = reference;
    let policy = our_head.with_hidden(positions.take(ours));
    let theirs = positions.take(theirs.without_autodiff());
    let reference = their_head.without_autodiff().with_hidden(theirs);
    at_positions(
        kernel::head_discrepancy(kind, policy, reference),
        mask,
        positions,
    )
}
