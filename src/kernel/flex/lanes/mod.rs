//! The kernel for a large f32 weight `[vocab, hidden]`. The logits of a tile need no packing: the
//! hidden states are packed once before, and the weight is read where it is stored.
//!
//! Rows are cut into blocks and words into chunks. A tile is a block times a chunk, `[word][row]`.
//! A chunk of the weight stays in the L2 cache while the kernel goes through the blocks. The
//! computation of a tile depends neither on the number of threads nor on other tiles.

mod backward;
mod buffers;
mod forward;
pub(crate) mod panel;
mod passes;
mod problem;

pub(crate) use problem::Lanes;
