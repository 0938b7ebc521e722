//! Tools that a training loop needs around an objective. The loop stays yours.
//!
//! | module | feature | holds |
//! |---|---|---|
//! | [`first_batch`] | | a check of the first batch: each mistake that it shows, in words |
//! | [`metrics`] | | metrics of a batch to log, under TRL's keys |
//! | [`state`] | | statistics of more than one batch that an objective depends on: z₀, δ, M₀ |
//! | [`class_ratio`] | | KTO's two weights beside the numbers of a data set |
//! | [`reducer`] | | sums over workers: counts, z₀, δ, gradients |
//! | `mpi` | `mpi` | workers that are processes |
//! | [`gradients`] | `optim` | clipping by the global norm; sums over workers |
//! | [`accumulation`] | `optim` | gradients and metrics of a step, from parts of its batch |
//! | [`burn_train`] | `train` | an item and metrics for burn-train |
//!
//! # Reproducibility
//!
//! On Flex, the same inputs give the same bits on any number of threads: log-probabilities, losses of
//! every objective (those that sort included), gradients, a training run with AdamW.
//!
//! Not promised are the same bits
//!
//! - for another batch size, or another layout of the head: the order of their sums is another one;
//! - on another processor, whose vectors are shorter or longer;
//! - on GPUs, whose atomic additions have no order;
//! - for several workers of burn-train's `multi`, which adds gradients in the order in which workers
//!   finish. Only the sum of two has no order: two workers without accumulated gradients. What
//!   [`Threads`](reducer::Threads) or `Mpi` sums has the same bits on every worker and in every run,
//!   gradients included;
//! - for another number of workers, whose sums have another order.
//!
//! The order of a list's candidates changes no loss, ties included. Burn's sort does not say which of
//! two equal values comes first. [`AotLoss`](crate::AotLoss) then has the same losses, and its gradient may go to either
//! one; [`Pair::subsampled`](crate::Pair::subsampled) may keep either of two tokens of equal noise.

#[cfg(feature = "optim")]
pub mod accumulation;
#[cfg(feature = "train")]
pub mod burn_train;
pub mod class_ratio;
pub mod first_batch;
#[cfg(feature = "optim")]
pub mod gradients;
pub mod metrics;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod reducer;
pub mod state;
