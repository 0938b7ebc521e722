//! Token ids as a batch of tensors, and their log-probabilities under a model.
//!
//! A [`Sequence`] is a prompt and a completion in token ids, on the host. Of several sequences make
//!
//! - a [`TokenBatch`], which has a row per sequence: begin here;
//! - a [`PackedBatch`], in which completions of one prompt share it: fewer tokens, for models that
//!   take a mask and positions ([each prompt once](crate::guide::shared_prefixes));
//! - [`TokenTensors`], if the ids are tensors already.
//!
//! All of them ask a model in the same way:
//!
//! ```text
//! batch.log_probs(&policy, Model::hidden)?
//!     .relative_to(batch.reference(&reference, Model::hidden)?)?
//! ```
//!
//! The forward of your model returns logits, or hidden states and the head ([`ModelOutput`]). The
//! reference is a [`Frozen`](crate::Frozen) model or a
//! [`ReferenceCache`](crate::reference::cache::ReferenceCache). The crate's front page has
//! [one step](crate#one-step) as a whole.
//!
//! [`ModelOutput`]: crate::log_probs::ModelOutput

mod batch;
mod packed;
mod packing;
mod reference;
mod sequence;
mod tensors;

pub use batch::{Padding, TokenBatch};
pub use packed::{PackedBatch, Segment};
pub use packing::Packing;
pub use reference::Reference;
pub(crate) use reference::sealed::Sealed;
pub use sequence::Sequence;
pub use tensors::TokenTensors;
