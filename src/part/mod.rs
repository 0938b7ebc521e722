//! Alternatives of one stage of an objective: an enum with one method each.

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
