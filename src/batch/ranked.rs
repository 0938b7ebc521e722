use burn::tensor::{Bool, Tensor};

use super::Batch;
use crate::error::InvalidInput;
use crate::log_probs::LogProbs;

/// K candidate completions per prompt with a score each; shorter lists are padded.
#[derive(Debug, Clone)]
pub struct Ranked<L> {
    candidates: L,
    scores: Tensor<2>,
    present: Tensor<2, Bool>,
}

impl<L> Ranked<L> {
    /// The candidates' log-probabilities, `[batch, candidates]`.
    pub fn candidates(&self) -> &L {
        &self.candidates
    }

    /// `[batch, candidates]`, higher is better.
    pub fn scores(&self) -> Tensor<2> {
        self.scores.clone()
    }

    /// `[batch, candidates]`, false where a list is padded.
    pub fn present(&self) -> Tensor<2, Bool> {
        self.present.clone()
    }

    /// True at `[b, i, j]` where candidates i and j are both present and j has the higher score.
    pub(crate) fn worse_than(&self) -> Tensor<3, Bool> {
        let scores = self.scores();
        let row = |x: Tensor<2, Bool>| x.unsqueeze_dim::<3>(2);
        let column = |x: Tensor<2, Bool>| x.unsqueeze_dim::<3>(1);
        let lower = scores
            .clone()
            .unsqueeze_dim::<3>(2)
            .lower(scores.unsqueeze_dim::<3>(1));
        lower
            .bool_and(row(self.present()))
            .bool_and(column(self.present()))
    }

    /// One true per row: the best-scored present candidate, the first of them where they tie.
    /// A row without candidates has none.
    pub(crate) fn best(&self) -> Tensor<2, Bool> {
        let absent = self.present().bool_not();
        let top = self.scores().mask_fill(absent.clone(), f64::NEG_INFINITY);
        let is_top = top
            .clone()
            .equal(top.max_dim(1).expand(self.scores.dims()))
            .bool_and(self.present());
        let first = is_top.clone().int().cumsum(1).equal_elem(1);
        is_top.bool_and(first)
    }
}

impl<L: LogProbs<2>> Ranked<L> {
    /// From log-probabilities, scores and the mask of present candidates.
    ///
    /// Absent candidates may hold anything: they are never read.
    ///
    /// # Shapes
    ///
    /// All `[batch, candidates]`.
    ///
    /// # Errors
    ///
    /// Shapes or devices differ.
    pub fn new(
        candidates: L,
        scores: Tensor<2>,
        present: Tensor<2, Bool>,
    ) -> Result<Self, InvalidInput> {
        let sum = candidates.policy().sum();
        InvalidInput::check_shape("scores", &sum.shape(), &scores.shape())?;
        InvalidInput::check_device("scores", &sum.device(), &scores.device())?;
        InvalidInput::check_shape("present", &sum.shape(), &present.shape())?;
        InvalidInput::check_device("present", &sum.device(), &present.device())?;
        Ok(Self {
            candidates,
            scores: scores.without_autodiff(),
            present,
        })
    }
}

impl<L: LogProbs<2>> Batch for Ranked<L> {
    type Rewards = Tensor<2>;

    fn len(&self) -> usize {
        self.scores.dims()[0]
    }
}
