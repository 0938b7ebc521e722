use burn::tensor::{Bool, Device, Tensor};

use super::traits::Batch;
use crate::error::InvalidInput;
use crate::log_probs::LogProbs;
use crate::needs::{Examples, Needs};

/// Unpaired completions: each is desirable or undesirable, and they need not share prompts.
#[derive(Debug, Clone)]
pub struct Unpaired<L> {
    log_probs: L,
    desirable: Tensor<1, Bool>,
}

impl<L> Unpaired<L> {
    /// The completions' log-probabilities.
    pub fn log_probs(&self) -> &L {
        &self.log_probs
    }

    /// Mask of the desirable completions, `[batch]`.
    pub fn desirable(&self) -> Tensor<1, Bool> {
        self.desirable.clone()
    }

    /// +1 for desirable, −1 for undesirable, in the number type of `like`.
    pub(crate) fn sign(&self, like: &Tensor<1>) -> Tensor<1> {
        let ones = like.clone().without_autodiff().ones_like();
        ones.mask_fill(self.desirable().bool_not(), -1.0)
    }
}

impl<L: LogProbs<1>> Unpaired<L> {
    /// Takes log-probabilities and labels, one per completion.
    ///
    /// # Errors
    ///
    /// Batch sizes or devices differ.
    pub fn new(log_probs: L, desirable: Tensor<1, Bool>) -> Result<Self, InvalidInput> {
        let sum = log_probs.policy().sum_ref();
        InvalidInput::check_shape("desirable", &sum.shape(), &desirable.shape())?;
        InvalidInput::check_device("desirable", &sum.device(), &desirable.device())?;
        Ok(Self {
            log_probs,
            desirable,
        })
    }
}

impl<L: LogProbs<1>> Batch for Unpaired<L> {
    type Rewards = Tensor<1>;

    fn len(&self) -> usize {
        self.desirable.dims()[0]
    }

    fn device(&self) -> Device {
        self.desirable.device()
    }

    fn needs() -> Needs {
        Needs::new(Examples::Unpaired, L::VALUES)
    }
}
