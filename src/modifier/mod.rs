//! Objectives made of objectives.

mod adapt;
mod mixture;
mod sft;
mod weighted;

pub use adapt::{PolicySide, WithoutColumn};
pub use mixture::Mixture;
pub use sft::{SftTarget, SftTerm};
pub use weighted::{Weighted, wpo_weights};
