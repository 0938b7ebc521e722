//! From model outputs to log-probabilities: per token, per sequence, against a reference.
//!
//! ```text
//! logits, or hidden states and a head
//!     ─→ TokenLogProbs: a column per predicted token
//!     ─→ RelativeTokenLogProbs: the reference beside them, where tokens are weighed or clamped
//!     ─→ SequenceLogProbs or RelativeLogProbs: a sum and a length per completion, for a batch
//! ```
//!
//! Most programs never name these types: [`TokenBatch::log_probs`](crate::tokens::TokenBatch::log_probs)
//! makes them from the forward of a model. Use them directly for tensors of your own
//! ([`TokenLogProbs::from_output`]), for numbers of your own ([`SequenceLogProbs::new`]), and for
//! entropies and other statistics of the logits ([`TokenStatistics`]).
//!
//! The same outputs of two models have a divergence at each token: [`TokenDiscrepancy`], for
//! [distillation](crate::guide::distillation), TDPO and regularisers.
//!
//! # Memory
//!
//! The logits of 4 × 512 tokens over 128k words are 1 GB in f32, and their gradient another. Let the
//! forward return hidden states and the head ([`ModelOutput`], [`LmHead`]) instead: positions that
//! predict no completion token are dropped, and the logits are computed block by block, so that all of
//! them never exist at once. Everything after it stays as it is. (A backend that is on in burn, but
//! not in the features of this crate, keeps all logits.)

mod completions;
mod discrepancy;
mod head;
mod hidden;
mod logits;
mod mask;
mod output;
mod packed;
mod positions;
mod predictions;
mod relative;
mod relative_tokens;
mod sequence;
mod shift;
mod statistics;
mod token;

pub use completions::{Completions, LogProbs};
pub use discrepancy::{ComparableOutput, TokenDiscrepancy};
pub use head::LmHead;
pub use mask::CompletionMask;
pub use output::{ModelOutput, WithStatistics};
pub(crate) use packed::{PackedPositions, flat};
pub(crate) use positions::CountedPositions;
pub use relative::RelativeLogProbs;
pub use relative_tokens::RelativeTokenLogProbs;
pub use sequence::SequenceLogProbs;
pub use statistics::TokenStatistics;
pub use token::TokenLogProbs;

pub use crate::kernel::Discrepancy;
