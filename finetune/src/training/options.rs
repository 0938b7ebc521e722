//! Options of a run: its length, and its rate of learning.

use serde::{Deserialize, Serialize};

use super::schedule::Schedule;

/// Length, rate and seed of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainOptions {
    /// Number of optimiser steps.
    pub steps: usize,
    /// Number of examples of a step; the last step of an epoch may have fewer.
    pub batch: usize,
    /// The largest learning rate.
    pub rate: f64,
    /// The schedule behind the warm-up.
    pub schedule: Schedule,
    /// Number of steps of the warm-up.
    pub warm_up: usize,
    /// The norm that gradients are clipped at.
    pub clip: f64,
    /// Weight decay of AdamW, whose ε is 1e-8.
    pub weight_decay: f64,
    /// Number of steps between two evaluations.
    pub evaluate_every: usize,
    /// Number of evaluations without a smaller held-out loss after which training ends.
    pub patience: Option<usize>,
    /// Seed of the order of the examples.
    pub seed: u64,
}

impl TrainOptions {
    /// The learning rate of `step`, from 1 to `steps`.
    pub(super) fn rate_of(&self, step: usize) -> f64 {
        self.rate * self.schedule.factor(step, self.steps, self.warm_up)
    }
}
