//! What a training loop needs around an objective. The loop stays yours.
//!
//! | module | feature | holds |
//! |---|---|---|
//! | [`first_batch`] | | what is wrong with a first batch, in words |
//! | [`metrics`] | | what to log, under TRL's keys |
//! | [`state`] | | statistics of many batches that an objective depends on: δ, M₀ |
//! | [`reducer`] | | sums over workers: counts, z₀, δ |
//! | [`gradients`] | `optim` | clipping by the global norm |
//! | [`accumulation`] | `optim` | gradients and metrics of a step, from parts of its batch |
//! | [`burn_train`] | `train` | an item and metrics for burn-train |

#[cfg(feature = "optim")]
pub mod accumulation;
#[cfg(feature = "train")]
pub mod burn_train;
pub mod first_batch;
#[cfg(feature = "optim")]
pub mod gradients;
pub mod metrics;
pub mod reducer;
pub mod state;
