//! The reference π°: a model that nothing trains.

#[cfg(feature = "cache")]
pub mod cache;
mod frozen;
mod sync;

pub use frozen::Frozen;
pub use sync::ReferenceSchedule;
