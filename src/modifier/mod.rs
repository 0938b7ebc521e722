//! Objectives made of objectives.

mod mixture;
mod sft;
mod weighted;

pub use mixture::Mixture;
pub use sft::{SftTarget, SftTerm};
pub use weighted::{Weighted, wpo_weights};
