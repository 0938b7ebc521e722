//! The trait of all objectives, and the losses and rewards that it returns.

use std::fmt::Debug;
use std::sync::Arc;

use burn::tensor::Tensor;

use crate::batch::{Batch, Rewards};
use crate::error::{InvalidHyperparameter, InvalidInput};
use crate::hyperparameter::positive;
use crate::math::logsumexp;
use crate::needs::Needs;

/// A preference objective over batches of type `B`.
///
/// What an objective needs is its batch type: one that needs a reference cannot be called without
/// one, and one that has no use for it cannot be given one. To write your own, implement
/// [`forward`](Self::forward); `examples/custom_objective.rs` does.
///
/// An objective prints its hyperparameters and goes to another thread, so that an
/// `Arc<dyn Objective<B>>` may be a field of a model (`#[module(skip)]`), as every objective of
/// this crate may.
///
/// DPO without a reference does not compile:
///
/// ```compile_fail,E0277
/// # use burn_preference::*;
/// fn dpo(loss: DpoLoss, pair: PolicyPair) {
///     let _ = loss.forward(pair);
/// }
/// ```
///
/// ```
/// # use burn_preference::*;
/// fn dpo(loss: DpoLoss, pair: PolicyPair, reference: PolicyPair) -> Result<(), InvalidInput> {
///     let _ = loss.forward(pair.relative_to(reference)?);
///     Ok(())
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no objective of `{B}`",
    note = "against a reference: `pair.relative_to(reference)?` makes the batch",
    note = "without one: `PolicySide(objective)` takes the policy's side of pairs against one",
    note = "a column that the objective does not use: `WithoutColumn(objective)` takes it off"
)]
pub trait Objective<B: Batch>: Debug + Send + Sync {
    /// Computes the loss of every example, and its implicit rewards.
    ///
    /// It reads no tensor back: a device queue never stalls, and nothing branches on values. If an
    /// objective can panic, its documentation says on what.
    fn forward(&self, batch: B) -> LossOutput<B::Rewards>;

    /// True if the loss of an example depends on the rest of its batch, as that of AOT does.
    ///
    /// The parts of a step then do not add up to the step. Say so of an objective of your own for
    /// which it is true: without this method it is false.
    fn whole_batch(&self) -> bool {
        false
    }

    /// Needs of the objective over this type of batch.
    fn needs(&self) -> Needs {
        B::needs().with_whole_batch(self.whole_batch())
    }
}

macro_rules! forward_through {
    ($pointer:ty) => {
        impl<B: Batch, O: Objective<B> + ?Sized> Objective<B> for $pointer {
            fn forward(&self, batch: B) -> LossOutput<B::Rewards> {
                (**self).forward(batch)
            }

            fn whole_batch(&self) -> bool {
                (**self).whole_batch()
            }
        }
    };
}

forward_through!(&O);
forward_through!(Box<O>);
forward_through!(Arc<O>);

/// Per-example losses and implicit rewards of one batch.
///
/// Nothing is reduced yet: the reductions below are explicit, so that micro-batches and several
/// devices give the same numbers as one large batch.
#[derive(Debug, Clone)]
#[must_use = "a loss does nothing until it is reduced and `backward` is called"]
pub struct LossOutput<R> {
    losses: Tensor<1>,
    rewards: R,
}

impl<R: Rewards> LossOutput<R> {
    /// An output from losses `[batch]` and rewards; the rewards lose their autodiff here.
    pub fn new(losses: Tensor<1>, rewards: R) -> Self {
        Self {
            losses,
            rewards: rewards.without_autodiff(),
        }
    }

    /// The losses of the examples, `[batch]`, with autodiff.
    pub fn losses(&self) -> Tensor<1> {
        self.losses.clone()
    }

    /// The implicit rewards, without autodiff, for logs and metrics: [their meaning](crate::loss#rewards).
    pub fn rewards(&self) -> &R {
        &self.rewards
    }

    /// Replaces the losses by `f` of them, for objectives made of objectives.
    pub fn map_losses(self, f: impl FnOnce(Tensor<1>) -> Tensor<1>) -> Self {
        Self {
            losses: f(self.losses),
            ..self
        }
    }

    /// The mean loss of the batch, `[1]`; 0 for an empty batch.
    pub fn mean(&self) -> Tensor<1> {
        match self.losses.dims() {
            [0] => self.sum(),
            // Not `mean()`: see `sum`.
            _ => self.losses().mean_dim(0),
        }
    }

    /// The sum of the losses, `[1]`.
    pub fn sum(&self) -> Tensor<1> {
        // Not `sum()`: over 4Mi elements it is not deterministic on Flex.
        self.losses().sum_dim(0)
    }

    /// The weighted mean Σ wᵢ·lossᵢ / Σ wᵢ, `[1]`; 0 where all weights are 0. No gradient flows into
    /// the weights.
    ///
    /// # Errors
    ///
    /// `weights` is not `[batch]`, or on another device.
    pub fn weighted_mean(&self, weights: Tensor<1>) -> Result<Tensor<1>, InvalidInput> {
        InvalidInput::check_shape("weights", &self.losses.shape(), &weights.shape())?;
        InvalidInput::check_device("weights", &self.losses.device(), &weights.device())?;
        let weights = weights.without_autodiff().cast(self.losses.dtype());
        let total = weights.clone().sum_dim(0);
        let total = total.clone().mask_fill(total.equal_elem(0.0), 1.0);
        Ok((self.losses() * weights).sum_dim(0) / total)
    }

    /// The mean −β′·ln mean e^(−loss/β′), `[1]`, of Dr. DPO (Wu et al., 2407.07880), robust against
    /// pairs whose label is wrong; 0 for an empty batch.
    ///
    /// A small β′ (the paper takes 1) listens to the pairs that the policy agrees with; β′ → ∞ is
    /// the mean. It depends on the batch: micro-batches do not add up to one large batch.
    ///
    /// # Errors
    ///
    /// `beta_prime` is not a finite number > 0.
    pub fn robust_mean(&self, beta_prime: f64) -> Result<Tensor<1>, InvalidHyperparameter> {
        positive("beta_prime", beta_prime)?;
        let [batch] = self.losses.dims();
        if batch == 0 {
            return Ok(self.sum());
        }
        let scaled = self.losses() * -beta_prime.recip();
        Ok((logsumexp(scaled) - (batch as f64).ln()) * -beta_prime)
    }

    /// The sum of the losses divided by a count that spans more than the batch, `[1]`.
    ///
    /// Burn sums gradients over accumulated micro-batches and over devices. Dividing each part by
    /// the number of examples in *all* of them makes the sum the gradient of one large batch,
    /// even where the parts are unequal.
    ///
    /// # Errors
    ///
    /// `denominator` is not a finite number > 0.
    pub fn normalized_by(&self, denominator: f64) -> Result<Tensor<1>, InvalidHyperparameter> {
        positive("denominator", denominator)?;
        Ok(self.sum() * denominator.recip())
    }
}
