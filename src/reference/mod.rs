//! The reference π°: a model that nothing trains.

mod frozen;
mod sync;

pub use frozen::Frozen;
pub use sync::ReferenceSchedule;
