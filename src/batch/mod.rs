//! Batches, which objectives take: log-probabilities, and columns of data beside them.
//!
//! | batch | holds | for |
//! |---|---|---|
//! | [`PolicyPair`] | chosen and rejected of the policy | reference-free objectives: ORPO |
//! | [`ReferencedPair`] | the same against a reference | DPO, IPO |
//! | [`Unpaired`] | unpaired completions, desirable or undesirable | KTO (with a [`WithBaseline`] column) |
//! | [`Scored`] | completions with a scalar score | QRPO; DRO and A*-PO (with a [`WithValue`] column) |
//! | [`Ranked`] | K scored completions per prompt, with a reference or without | Plackett–Luce, RRHF |
//! | [`RewardPair`], [`Ranked`]`<Tensor<2>>` | rewards that a reward model gives them | reward models: Bradley–Terry |
//! | [`Demonstrations`] | completions to imitate, token by token | SFT |
//! | [`Samples`] | completions that a policy drew, with a reward among those of their prompt | GRPO |
//! | [`SequenceLogProbs`](crate::SequenceLogProbs), [`RelativeLogProbs`](crate::RelativeLogProbs) | completions alone | unlearning: NPO, SimNPO |
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
//! | [`WithStepTokens`] | the tokens that count in the whole step | a mean over tokens: SFT, GRPO, ORPO, CPO, TPO, [`SftTerm`](crate::modifier::SftTerm) |
//! | [`WithMeanMargin`] | M₀, from the margins so far | β-DPO |
//!
//! A scale per example is a method: [`Pair::scaled_by`].
//!
//! Columns nest, and the outermost is taken off first: `Weighted` around BCO takes a
//! `WithWeights<WithShift<ReferencedPair>>`. To give an objective a batch with a column that it does
//! not use, wrap it in [`WithoutColumn`](crate::modifier::WithoutColumn).

mod column;
mod demonstrations;
mod grouped_reward;
mod pair;
mod per_completion;
mod ranked;
mod samples;
mod scored;
mod token_pair;
mod traits;
mod unpaired;

pub use column::{
    Column, WithBaseline, WithMargin, WithMeanMargin, WithNll, WithPreference, WithScores,
    WithSequenceKl, WithShift, WithStepTokens, WithTies, WithValue, WithWeights,
};
pub(crate) use column::{Imitated, for_each_column};
pub use demonstrations::Demonstrations;
pub use grouped_reward::GroupedReward;
pub use pair::{Pair, PolicyPair, ReferencedPair, RewardPair};
pub use per_completion::PerCompletion;
pub use ranked::{Candidates, Ranked};
pub use samples::{Ratios, SampleLogProbs, Samples};
pub use scored::{Scored, optimal_values, quantile_scores};
pub use traits::{Batch, Rewards};
pub use unpaired::Unpaired;
