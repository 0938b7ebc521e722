use burn::tensor::Tensor;

use super::Batch;
use crate::error::InvalidInput;
use crate::log_probs::SequenceLogProbs;

macro_rules! column {
    ($(#[$meta:meta])* $name:ident, $field:ident: $ty:ty) => {
        $(#[$meta])*
        #[derive(Debug, Clone)]
        pub struct $name<B> {
            pub(crate) batch: B,
            pub(crate) $field: $ty,
        }

        impl<B> $name<B> {
            /// The batch that the column stands beside.
            pub fn batch(&self) -> &B {
                &self.batch
            }

            /// The column.
            pub fn $field(&self) -> $ty {
                self.$field.clone()
            }
        }

        impl<B: Batch> Batch for $name<B> {
            type Rewards = B::Rewards;

            fn len(&self) -> usize {
                self.batch.len()
            }
        }
    };
}

column! {
    /// A batch with the reward margin that each pair should reach, `[batch]`.
    ///
    /// ODPO (2402.10571) uses `α·ln(s_w − s_l)` of the pair's scores.
    WithMargin, margin: Tensor<1>
}

column! {
    /// A batch with KTO's reference point z₀, `[1]`, nats.
    ///
    /// It is data, not a field of the loss, so that the caller can estimate it on completions of
    /// its own choice and average it over devices first: see
    /// [`KlEstimate`](crate::loss::KlEstimate).
    WithBaseline, baseline: Tensor<1>
}

column! {
    /// A batch with the sequences whose negative log-likelihood is added, where that is not the
    /// chosen completion alone: prompt and completion, as the authors of ORPO and TRL count it.
    WithNll, nll_of: SequenceLogProbs
}

impl<B: Batch> WithMargin<B> {
    /// Puts one margin per example beside the batch.
    ///
    /// # Errors
    ///
    /// `margin` is not `[batch]`.
    pub fn new(batch: B, margin: Tensor<1>) -> Result<Self, InvalidInput> {
        InvalidInput::check_shape("margin", &[batch.len()].into(), &margin.shape())?;
        let margin = margin.without_autodiff();
        Ok(Self { batch, margin })
    }
}

impl<B: Batch> WithBaseline<B> {
    /// Puts the reference point beside the batch.
    ///
    /// # Errors
    ///
    /// `baseline` is not `[1]`.
    pub fn new(batch: B, baseline: Tensor<1>) -> Result<Self, InvalidInput> {
        InvalidInput::check_shape("baseline", &[1].into(), &baseline.shape())?;
        let baseline = baseline.without_autodiff();
        Ok(Self { batch, baseline })
    }
}

impl<B: Batch> WithNll<B> {
    /// Puts one sequence per example beside the batch.
    ///
    /// # Errors
    ///
    /// `nll_of` is not of the same batch size.
    pub fn new(batch: B, nll_of: SequenceLogProbs) -> Result<Self, InvalidInput> {
        let found = nll_of.sum().shape();
        InvalidInput::check_shape("nll_of", &[batch.len()].into(), &found)?;
        Ok(Self { batch, nll_of })
    }
}
