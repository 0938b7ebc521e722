//! Alternatives of one stage of an objective: an enum with one method each.

mod divergence;
mod label_noise;
mod nll;
mod normalization;

pub use divergence::Divergence;
pub use label_noise::LabelNoise;
pub use nll::NllNormalization;
pub use normalization::Normalization;
