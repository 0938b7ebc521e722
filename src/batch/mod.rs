//! What objectives take: batches of log-probabilities, and columns of data beside them.
//!
//! | batch | holds | for |
//! |---|---|---|
//! | [`PolicyPair`] | chosen and rejected of the policy | reference-free objectives: ORPO |
//! | [`ReferencedPair`] | the same against a reference | DPO, IPO |
//! | [`Unpaired`] | unpaired completions, desirable or undesirable | KTO (with a [`WithBaseline`] column) |
//! | [`Scored`] | completions with a scalar score | QRPO; DRO and A*-PO (with a [`WithValue`] column) |
//! | [`Ranked`] | K scored completions per prompt, with a reference or without | Plackett–Luce, RRHF |
//! | [`RewardPair`], [`Ranked`]`<Tensor<2>>` | what a reward model says of them | reward models: Bradley–Terry |
//! | [`SequenceLogProbs`], [`RelativeLogProbs`] | completions alone | unlearning: NPO, SimNPO |
//!
//! The batches of [`tokens`](crate::tokens) and [`data`](crate::data) make them from a model. From
//! numbers of your own:
//!
//! ```
//! use burn::tensor::Device;
//! use burn_preference::{PolicyPair, SequenceLogProbs};
//!
//! let device = Device::default();
//! // Sum and length of the log-probabilities of two completions, one per pair.
//! let chosen = SequenceLogProbs::from_values(&[-10.0, -7.0], &[4, 3], &device)?;
//! let rejected = SequenceLogProbs::from_values(&[-30.0, -9.0], &[4, 5], &device)?;
//! let pairs = PolicyPair::new(chosen, rejected)?; // `.relative_to(reference)?` for DPO
//! assert_eq!(pairs.chosen.sum().into_data().to_vec::<f32>().unwrap(), [-10.0, -7.0]);
//! # Ok::<(), burn_preference::InvalidInput>(())
//! ```
//!
//! # Columns
//!
//! Data beside an example is a [`Column`] around a batch, never a field of a loss. So is a statistic
//! of many batches, which you hold:
//!
//! | column | holds | for |
//! |---|---|---|
//! | [`WithMargin`] | a margin to reach | DPO, Bradley–Terry |
//! | [`WithPreference`] | the probability that the chosen completion is better | DPO, SPPO, Bradley–Terry |
//! | [`WithScores`] | a score per completion of a pair | RPO, REBEL |
//! | [`WithTies`] | which pairs are ties | Rao–Kupper, Davidson, Bradley–Terry with ties |
//! | [`WithWeights`] | a weight per example | [`Weighted`](crate::modifier::Weighted) |
//! | [`WithNll`] | the sequences to imitate | TPO, ORPO, CPO, [`SftTerm`](crate::modifier::SftTerm) |
//! | [`WithSequenceKl`] | KL(π° ‖ π) per completion | TDPO |
//! | [`WithValue`] | the value of the prompt | DRO, A*-PO |
//! | [`WithBaseline`] | z₀, from mismatched completions | KTO |
//! | [`WithShift`] | δ, from the rewards so far | BCO |
//! | [`WithMeanMargin`] | M₀, from the margins so far | β-DPO |
//!
//! A scale per example is a method: [`Pair::scaled_by`].
//!
//! Columns nest, and the outermost is taken off first: `Weighted` around BCO takes a
//! `WithWeights<WithShift<ReferencedPair>>`. To give an objective a batch with a column that it does
//! not use, wrap it in [`WithoutColumn`](crate::modifier::WithoutColumn).

mod column;
mod pair;
mod ranked;
mod rows;
mod scored;
mod token_pair;
mod unpaired;

use burn::tensor::{Device, Tensor};

use crate::log_probs::{LogProbs, RelativeLogProbs, SequenceLogProbs};
use crate::needs::{Examples, Needs, Values};

pub(crate) use column::for_each_column;
pub use column::{
    Column, WithBaseline, WithMargin, WithMeanMargin, WithNll, WithPreference, WithScores,
    WithSequenceKl, WithShift, WithTies, WithValue, WithWeights,
};
pub use pair::{Pair, PolicyPair, ReferencedPair, RewardPair};
pub use ranked::{Candidates, Ranked};
pub use rows::Rows;
pub use scored::{Scored, optimal_values, quantile_scores};
pub use unpaired::Unpaired;

/// One batch of examples, as an objective takes it.
///
/// Implement it for a batch of your own, whose objectives are then yours as well:
/// `examples/custom_objective.rs` does.
pub trait Batch {
    /// The shape of the implicit rewards: one tensor, or one per side of a pair.
    type Rewards: Rewards;

    /// The number of examples: the length of the losses.
    fn len(&self) -> usize;

    /// Where the examples are.
    fn device(&self) -> Device;

    /// What an objective over this batch needs. A batch outside this crate may leave it as it is.
    fn needs() -> Needs
    where
        Self: Sized,
    {
        Needs::new(Examples::Custom, Values::Custom)
    }

    /// Whether there is no example.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Implicit rewards: a tensor or a pair of them, for logging, so that they carry no autodiff.
///
/// It is sealed.
pub trait Rewards: sealed::Sealed {
    /// The same values without autodiff.
    fn without_autodiff(self) -> Self;
}

mod sealed {
    use super::{Pair, Tensor};

    pub trait Sealed {}

    impl<const D: usize> Sealed for Tensor<D> {}
    impl<R: Sealed> Sealed for Pair<R> {}
}

impl<const D: usize> Rewards for Tensor<D> {
    fn without_autodiff(self) -> Self {
        Tensor::without_autodiff(self)
    }
}

macro_rules! completions_alone {
    ($log_probs:ty) => {
        impl Batch for $log_probs {
            type Rewards = Tensor<1>;

            fn len(&self) -> usize {
                self.policy().sum().dims()[0]
            }

            fn device(&self) -> Device {
                self.policy().sum().device()
            }

            fn needs() -> Needs {
                Needs::new(Examples::Completions, <$log_probs as LogProbs<1>>::VALUES)
            }
        }
    };
}

completions_alone!(SequenceLogProbs);
completions_alone!(RelativeLogProbs);
