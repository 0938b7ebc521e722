//! Token ids on the host, and how they become a batch of tensors: [`TokenBatch`], a row per sequence,
//! or [`PackedBatch`], with each prompt once.

mod batch;
mod packed;
mod packing;
mod sequence;

pub use batch::{Padding, TokenBatch};
pub use packed::{PackedBatch, Segment};
pub use packing::Packing;
pub use sequence::Sequence;
