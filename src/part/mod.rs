//! Choices inside an objective, such as label noise or a divergence: the values of config fields.
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
//! Each choice is an enum with methods that compute it, for objectives of your own as well.

mod advantage;
mod divergence;
mod gap_distance;
mod kl_estimator;
mod label_noise;
mod link;
mod nll;
mod normalization;
mod ratio_clip;
mod ratio_level;
mod regression_unit;
mod tie_model;
mod token_normalization;
mod token_weighting;

pub use advantage::Advantage;
pub use divergence::Divergence;
pub use gap_distance::GapDistance;
pub use kl_estimator::KlEstimator;
pub use label_noise::LabelNoise;
pub use link::Link;
pub use nll::NllNormalization;
pub use normalization::Normalization;
pub use ratio_clip::RatioClip;
pub use ratio_level::RatioLevel;
pub use regression_unit::RegressionUnit;
pub use tie_model::TieModel;
pub use token_normalization::TokenNormalization;
pub use token_weighting::TokenWeighting;
