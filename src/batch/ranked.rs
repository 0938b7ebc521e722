use burn::tensor::{Bool, Device, Shape, Tensor};

use super::traits::Batch;
use crate::error::InvalidInput;
use crate::log_probs::{LogProbs, RelativeLogProbs, SequenceLogProbs};
use crate::math::{any_of_row, log1p_sum_exp_where, upcast};
use crate::needs::{Examples, Needs, Values};

/// Values of the candidates of a list: log-probabilities, or the rewards that a reward model gives
/// them.
///
/// It is sealed.
pub trait Candidates: sealed::Candidates {}

impl<L: sealed::Candidates> Candidates for L {}

mod sealed {
    use super::{Device, LogProbs, Shape, Tensor, Values};

    pub trait Candidates {
        const VALUES: Values;

        fn shape(&self) -> Shape;
        fn device(&self) -> Device;
    }

    impl<L: LogProbs<2>> Candidates for L {
        const VALUES: Values = <L as LogProbs<2>>::VALUES;

        fn shape(&self) -> Shape {
            self.policy().sum_ref().shape()
        }

        fn device(&self) -> Device {
            self.policy().sum_ref().device()
        }
    }

    impl Candidates for Tensor<2> {
        const VALUES: Values = Values::Rewards;

        fn shape(&self) -> Shape {
            Self::shape(self)
        }

        fn device(&self) -> Device {
            Self::device(self)
        }
    }
}

/// Lists of K candidate completions per prompt with a score each; shorter lists are padded.
///
/// `L` is [`SequenceLogProbs`], [`RelativeLogProbs`], or for reward models the rewards, a tensor
/// `[batch, candidates]`.
#[derive(Debug, Clone)]
pub struct Ranked<L> {
    candidates: L,
    scores: Tensor<2>,
    present: Tensor<2, Bool>,
}

impl<L> Ranked<L> {
    /// The candidates' log-probabilities or rewards, `[batch, candidates]`.
    pub fn candidates(&self) -> &L {
        &self.candidates
    }

    /// Score of each candidate, `[batch, candidates]`; higher is better.
    pub fn scores(&self) -> Tensor<2> {
        self.scores.clone()
    }

    /// Mask of the candidates that are there, `[batch, candidates]`; false where a list is padded.
    pub fn present(&self) -> Tensor<2, Bool> {
        self.present.clone()
    }

    /// `[batch, candidates, candidates]`: the shape of all ordered pairs of a list.
    pub(crate) fn square(&self) -> Shape {
        let [lists, candidates] = self.scores.dims();
        // Not an array, of which `expand` takes no 0.
        Shape::new([lists, candidates, candidates])
    }

    /// True at `[b, i, j]` where candidates i and j are both present.
    fn both_present(&self) -> Tensor<3, Bool> {
        let row = self.present().unsqueeze_dim::<3>(2);
        row.bool_and(self.present().unsqueeze_dim::<3>(1))
    }

    /// True at `[b, i, i]`.
    pub(crate) fn itself(&self) -> Tensor<3, Bool> {
        let [_, candidates] = self.scores.dims();
        Tensor::<2, Bool>::diag_mask([candidates; 2], 0, &self.scores.device())
            .bool_not()
            .unsqueeze::<3>()
            .expand(self.square())
    }

    /// x_i and x_j at `[b, i, j]`.
    pub(crate) fn compare(&self, x: &Tensor<2>) -> (Tensor<3>, Tensor<3>) {
        let row = x.clone().unsqueeze_dim::<3>(2).expand(self.square());
        let column = x.clone().unsqueeze_dim::<3>(1).expand(self.square());
        (row, column)
    }

    /// x_i − x_j at `[b, i, j]`.
    pub(crate) fn differences(&self, x: &Tensor<2>) -> Tensor<3> {
        let (mine, other) = self.compare(x);
        mine - other
    }

    /// True at `[b, i, j]` where candidates i and j are both present and i has the higher score.
    pub(crate) fn better_than(&self) -> Tensor<3, Bool> {
        self.worse_than().swap_dims(1, 2)
    }

    /// True at `[b, i, j]` where candidates i and j are both present and j has the higher score.
    pub(crate) fn worse_than(&self) -> Tensor<3, Bool> {
        let (mine, other) = self.compare(&self.scores);
        mine.lower(other).bool_and(self.both_present())
    }

    /// True at `[b, i, j]` where both are present and j is i, or comes after i in the order of
    /// `values`, highest first; equal values keep their order in the list.
    fn not_before_by(&self, values: &Tensor<2>) -> Tensor<3, Bool> {
        let [_, candidates] = self.scores.dims();
        let (mine, other) = self.compare(values);
        let later = Tensor::<2, Bool>::triu_mask([candidates; 2], 0, &values.device())
            .bool_not()
            .unsqueeze::<3>()
            .expand(self.square());
        let tied_later = mine.clone().equal(other.clone()).bool_and(later);
        mine.greater(other)
            .bool_or(tied_later)
            .bool_and(self.both_present())
    }

    /// As `not_before_by` of the scores.
    pub(crate) fn not_before(&self) -> Tensor<3, Bool> {
        self.not_before_by(&self.scores)
    }

    /// The rank of each present candidate by `values`, 1 for the highest; 0 for absent ones.
    pub(crate) fn ranks(&self, values: Tensor<2>) -> Tensor<2> {
        let [lists, candidates] = self.scores.dims();
        let dtype = values.dtype();
        // Candidate j is behind (or is) every i that is not after it.
        let ahead = self.not_before_by(&values).float().cast(dtype).sum_dim(1);
        ahead.reshape([lists, candidates])
    }

    /// s_i − s_j at `[b, i, j]` where j is worse than i, 0 elsewhere.
    pub(crate) fn score_gaps(&self) -> Tensor<3> {
        self.differences(&self.scores)
            .mask_fill(self.better_than().bool_not(), 0.0)
    }

    /// `losses`, but NaN for a list with a NaN in `q` or among its scores: comparisons with NaN
    /// are false, and would leave its candidate out.
    pub(crate) fn nan_where_unknown(&self, losses: Tensor<1>, q: &Tensor<2>) -> Tensor<1> {
        let unknown = self.scores.clone().is_nan().bool_or(q.clone().is_nan());
        let unknown = any_of_row(unknown.bool_and(self.present()));
        losses.mask_fill(unknown.squeeze_dim(1), f64::NAN)
    }

    /// `values` with 0 for absent candidates, whatever they hold.
    pub(crate) fn fill_absent(&self, values: Tensor<2>) -> Tensor<2> {
        values.mask_fill(self.present().bool_not(), 0.0)
    }

    /// Σ over the present candidates of each list.
    pub(crate) fn sum_present(&self, values: Tensor<2>) -> Tensor<1> {
        self.fill_absent(values).sum_dim(1).squeeze_dim(1)
    }

    /// 1/K, K the number of present candidates, `[batch, 1]`.
    pub(crate) fn share(&self, like: &Tensor<2>) -> Tensor<2> {
        let count = self.fill_absent(like.ones_like()).sum_dim(1);
        count.clamp_min(1.0).recip()
    }

    /// −ln P(order of the scores) of each list under Plackett and Luce, of strengths `q`, which is 0
    /// where a candidate is absent:
    ///
    /// ```text
    /// −Σ_k [q_(k) − ln Σ_{j ≥ k} e^q_(j)]
    /// ```
    pub(crate) fn order_nll(&self, q: &Tensor<2>) -> Tensor<1> {
        // Row k: the other candidates from rank k on, relative to it. Differences first, which do not
        // round at the level of all.
        let excess = -self.differences(q);
        let below = self.not_before().bool_and(self.itself().bool_not());
        let losses = log1p_sum_exp_where(excess, below).squeeze_dim::<2>(2);
        self.nan_where_unknown(self.sum_present(losses), q)
    }

    /// One true per row: the best-scored present candidate, the first of them where they tie.
    /// A row without candidates has none.
    pub(crate) fn best(&self) -> Tensor<2, Bool> {
        let absent = self.present().bool_not();
        let top = self.scores().mask_fill(absent.clone(), f64::NEG_INFINITY);
        let is_top = top
            .clone()
            .equal(top.max_dim(1).expand(self.scores.shape()))
            .bool_and(self.present());
        let first = is_top.clone().int().cumsum(1).equal_elem(1);
        is_top.bool_and(first)
    }
}

impl Ranked<RelativeLogProbs<2>> {
    /// The side of the policy alone, for objectives that have no use for the reference.
    pub fn policy(&self) -> Ranked<SequenceLogProbs<2>> {
        Ranked {
            candidates: self.candidates.policy().clone(),
            scores: self.scores(),
            present: self.present(),
        }
    }

    /// β·ρ of the present candidates, 0 for absent ones.
    pub(crate) fn rewards(&self, beta: f64) -> Tensor<2> {
        self.fill_absent(self.candidates.log_ratio()) * beta
    }
}

impl Ranked<Tensor<2>> {
    /// The rewards of the present candidates, 0 for absent ones.
    pub(crate) fn rewards(&self) -> Tensor<2> {
        self.fill_absent(upcast(self.candidates.clone()))
    }
}

impl Ranked<SequenceLogProbs<2>> {
    /// Puts the reference's log-probabilities of the same candidates beside the policy's.
    ///
    /// # Errors
    ///
    /// Shapes or devices differ.
    pub fn relative_to(
        self,
        reference: SequenceLogProbs<2>,
    ) -> Result<Ranked<RelativeLogProbs<2>>, InvalidInput> {
        Ok(Ranked {
            candidates: self.candidates.relative_to(reference)?,
            scores: self.scores,
            present: self.present,
        })
    }

    /// −ℓ̄ of the best candidate of each list, 0 for an empty list.
    pub(crate) fn best_nll(&self) -> Tensor<1> {
        let not_best = self.best().bool_not();
        let best = self.candidates.unmodified().mean();
        let best = best.mask_fill(not_best, 0.0);
        -best.sum_dim(1).squeeze_dim::<1>(1)
    }
}

impl<L: Candidates> Ranked<L> {
    /// Takes log-probabilities or rewards, scores and the mask of present candidates.
    ///
    /// Absent candidates may hold anything: they are never read.
    ///
    /// # Shapes
    ///
    /// All `[batch, candidates]`.
    ///
    /// # Errors
    ///
    /// Shapes or devices differ, or lists hold no candidate.
    pub fn new(
        candidates: L,
        scores: Tensor<2>,
        present: Tensor<2, Bool>,
    ) -> Result<Self, InvalidInput> {
        let (shape, device) = (candidates.shape(), candidates.device());
        if shape[1] == 0 {
            return Err(InvalidInput::new("candidates", "one per list at least", 0));
        }
        InvalidInput::check_shape("scores", &shape, &scores.shape())?;
        InvalidInput::check_device("scores", &device, &scores.device())?;
        InvalidInput::check_shape("present", &shape, &present.shape())?;
        InvalidInput::check_device("present", &device, &present.device())?;
        Ok(Self {
            candidates,
            scores: scores.without_autodiff(),
            present,
        })
    }
}

impl<L: LogProbs<2>> Ranked<L> {
    /// Scales the rewards of every list by a number of its own, as [`Pair::scaled_by`](super::Pair::scaled_by) does.
    ///
    /// # Errors
    ///
    /// `scale` is not `[batch]`, or is on another device.
    pub fn scaled_by(self, scale: Tensor<1>) -> Result<Self, InvalidInput> {
        let [lists, candidates] = self.scores.dims();
        InvalidInput::check_shape("scale", &[lists].into(), &scale.shape())?;
        InvalidInput::check_device("scale", &self.device(), &scale.device())?;
        // Not an array, of which `expand` takes no 0.
        let all = Shape::new([lists, candidates]);
        let scale = scale.unsqueeze_dim::<2>(1).expand(all);
        Ok(Self {
            candidates: self.candidates.times(scale),
            ..self
        })
    }
}

impl<L: Candidates> Batch for Ranked<L> {
    type Rewards = Tensor<2>;

    fn len(&self) -> usize {
        self.scores.dims()[0]
    }

    fn device(&self) -> Device {
        self.scores.device()
    }

    fn needs() -> Needs {
        Needs::new(Examples::Ranked, L::VALUES)
    }
}
