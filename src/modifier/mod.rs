//! Objectives made of objectives.

mod sft;

pub use sft::{SftTarget, SftTerm};
