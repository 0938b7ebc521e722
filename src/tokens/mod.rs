//! Token ids on the host, how they become a batch of tensors ([`TokenBatch`], a row per sequence, or
//! [`PackedBatch`], with each prompt once), and what a model says of them.
//!
//! ```text
//! batch.log_probs(&policy, Model::hidden)?
//!     .relative_to(batch.reference(&reference, Model::hidden)?)?
//! ```
//!
//! The forward of your model returns logits, or hidden states and the head ([`ModelOutput`]). The
//! reference is a [`Frozen`](crate::Frozen) model or a
//! [`ReferenceCache`](crate::reference::cache::ReferenceCache).
//!
//! [`ModelOutput`]: crate::log_probs::ModelOutput

mod batch;
mod packed;
mod packing;
mod reference;
mod rows;
mod sequence;

pub use batch::{Padding, TokenBatch};
pub use packed::{PackedBatch, Segment};
pub use packing::Packing;
pub use reference::Reference;
pub(crate) use reference::sealed::Sealed;
pub use rows::TokenRows;
pub use sequence::Sequence;
