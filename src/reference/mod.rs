//! The reference π°: the model that training starts from, and that nothing trains.
//!
//! | you want | take |
//! |---|---|
//! | the model as it is now, beside the policy | [`Frozen::new`] |
//! | the base of a LoRA policy, without a second copy of its weights | [`Frozen::without_adapters`] |
//! | no reference in memory while you train | [`cache`]: its log-probabilities on disk (feature `cache`) |
//! | a reference that follows the policy, TR-DPO | [`ReferenceSchedule`] |
//! | no reference at all | an objective that takes a [`PolicyPair`](crate::PolicyPair) |
//!
//! ```text
//! batch.log_probs(&policy, Model::hidden)?
//!     .relative_to(batch.reference(&frozen_or_cache, Model::hidden)?)?
//! ```
//!
//! The guide's chapter on the [reference](mod@crate::guide::reference) has whole examples.

#[cfg(feature = "cache")]
pub mod cache;
mod frozen;
mod sync;

pub use frozen::Frozen;
pub use sync::ReferenceSchedule;
