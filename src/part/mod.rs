//! Choices that several objectives have in common: the values of their configs' fields.
//!
//! ```
//! use burn_preference::{Divergence, DpoLossConfig, LabelNoise};
//!
//! let config = DpoLossConfig::new()
//!     .with_label_noise(LabelNoise::Conservative(0.1))
//!     .with_divergence(Divergence::JensenShannon);
//! assert!(config.try_init().is_ok());
//! ```
//!
//! Each is an enum with one method, which an objective of your own can call as well.

mod divergence;
mod gap_distance;
mod label_noise;
mod link;
mod nll;
mod normalization;
mod regression_unit;
mod tie_model;

pub use divergence::Divergence;
pub use gap_distance::GapDistance;
pub use label_noise::LabelNoise;
pub use link::Link;
pub use nll::NllNormalization;
pub use normalization::Normalization;
pub use regression_unit::RegressionUnit;
pub use tie_model::TieModel;
