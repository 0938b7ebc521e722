//! The reference π°: a model that nothing trains.

mod frozen;

pub use frozen::Frozen;
