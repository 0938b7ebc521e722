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
/// Where a candidate stands in its list means nothing to any objective or metric. Of equal scores
/// none is better: the page of each objective says what it learns from them.
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

    /// The rank of each present candidate by `values`, 1 for the highest; 0 for absent ones. Equal
    /// values take their ranks in the order of the list: average what depends on it, as `mean_gaps`
    /// does.
    pub(crate) fn ranks(&self, values: &Tensor<2>) -> Tensor<2> {
        let [lists, candidates] = self.scores.dims();
        let (mine, other) = self.compare(values);
        let not_earlier = Tensor::<2, Bool>::triu_mask([candidates; 2], 0, &values.device())
            .bool_not()
            .unsqueeze::<3>()
            .expand(self.square());
        // True at [b, i, j] where j is i or comes after it: j is behind every i that is not after it.
        let not_before = mine
            .clone()
            .greater(other.clone())
            .bool_or(mine.equal(other).bool_and(not_earlier))
            .bool_and(self.both_present());
        let ahead = not_before.float().cast(values.dtype()).sum_dim(1);
        ahead.reshape([lists, candidates])
    }

    /// |x_i − x_j| at `[b, i, j]`, x a function of the ranks by `values`: its mean over all orders of
    /// equal values.
    ///
    /// Two candidates of one value hold each pair of its ranks equally often. Those of two values
    /// are always on the same side of each other, so the gap of the means is the mean gap.
    pub(crate) fn mean_gaps(&self, x: &Tensor<2>, values: &Tensor<2>) -> Tensor<3> {
        let (mine, other) = self.compare(values);
        let equal = mine.equal(other).bool_and(self.both_present());
        let sum_over_equal = |x: Tensor<3>| {
            let x = x.mask_fill(equal.clone().bool_not(), 0.0);
            x.sum_dim(2).squeeze_dim::<2>(2)
        };
        let of_other = |x: &Tensor<2>| self.compare(x).1;
        let count = sum_over_equal(of_other(&x.ones_like())).clamp_min(1.0);
        let mean = sum_over_equal(of_other(x)) / count.clone();
        let gaps = sum_over_equal(self.differences(x).abs());
        let pairs = (count.clone() * (count - 1)).clamp_min(1.0);
        let within = sum_over_equal(of_other(&gaps)) / pairs;
        let within = within.unsqueeze_dim::<3>(2).expand(self.square());
        self.differences(&mean).abs().mask_where(equal, within)
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

    /// ln(1 + Σ_{s_j < s_k} e^(q_j − q_k)) of each candidate k that `leads` marks, 0 for the others:
    /// −ln P(k comes first among itself and all worse ones) under Plackett and Luce, of strengths
    /// `q`, which is 0 where a candidate is absent.
    pub(crate) fn lead_nll(&self, q: &Tensor<2>, leads: Tensor<2, Bool>) -> Tensor<2> {
        let leads = leads.unsqueeze_dim::<3>(2).expand(self.square());
        // Differences first, which do not round at the level of all.
        let excess = -self.differences(q);
        log1p_sum_exp_where(excess, self.better_than().bool_and(leads)).squeeze_dim(2)
    }

    /// −ln P(order of the scores) of each list under Plackett and Luce, of strengths `q`, which is 0
    /// where a candidate is absent; equal candidates do not compete:
    ///
    /// ```text
    /// −Σ_k [q_k − ln(e^q_k + Σ_{s_j < s_k} e^q_j)]
    /// ```
    pub(crate) fn order_nll(&self, q: &Tensor<2>) -> Tensor<1> {
        let losses = self.lead_nll(q, self.present()).sum_dim(1);
        self.nan_where_unknown(losses.squeeze_dim(1), q)
    }

    /// True for the best-scored present candidates of each list: several where they tie, none in a
    /// list without candidates.
    pub(crate) fn best(&self) -> Tensor<2, Bool> {
        let absent = self.present().bool_not();
        let top = self.scores().mask_fill(absent, f64::NEG_INFINITY);
        top.clone()
            .equal(top.max_dim(1).expand(self.scores.shape()))
            .bool_and(self.present())
    }

    /// The mean of `values` over the best-scored candidates of each list; 0 for an empty list.
    pub(crate) fn mean_of_best(&self, values: Tensor<2>) -> Tensor<1> {
        let best = self.best();
        let count = best.clone().float().cast(values.dtype()).sum_dim(1);
        let sum = values.mask_fill(best.bool_not(), 0.0).sum_dim(1);
        (sum / count.clamp_min(1.0)).squeeze_dim(1)
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

    /// −ℓ̄ of the best candidate of each list, the mean of several; 0 for an empty list.
    pub(crate) fn best_nll(&self) -> Tensor<1> {
        -self.mean_of_best(self.candidates.unmodified().mean())
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
