//! A check of the first batch, in words: why the loss is not ln 2.
//!
//! Most questions about a preference run that does not learn have one of a dozen answers, and one
//! batch shows which. [`FirstBatch`] calls your model a few times on that batch and on variants of
//! it, and returns its [findings](Finding): dropout that is on, a reference that is not the policy's
//! start, masks that count too much or nothing, padding that reaches the numbers, a model that
//! sees the future. It reads everything back, so call it once, before training.
//!
//! ```
//! use burn::module::Module;
//! use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
//! use burn::tensor::{Device, Int, Tensor};
//! use burn_preference::training::first_batch::{Finding, FirstBatch};
//! use burn_preference::tokens::{Padding, Sequence, TokenBatch};
//! use burn_preference::{DpoLossConfig, Frozen, InvalidInput, Objective, Pair};
//!
//! #[derive(Module, Debug)]
//! struct Model {
//!     embedding: Embedding,
//!     head: Linear,
//! }
//!
//! impl Model {
//!     fn new(device: &Device) -> Self {
//!         Self {
//!             embedding: EmbeddingConfig::new(9, 4).init(device),
//!             head: LinearConfig::new(4, 9).init(device),
//!         }
//!     }
//!
//!     fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
//!         self.head.forward(self.embedding.forward(tokens))
//!     }
//! }
//!
//! let device = Device::default().autodiff();
//! let policy = Model::new(&device);
//! let reference = Frozen::new(&Model::new(&device)); // of other weights: a mistake
//!
//! // One pair: the chosen row, then the rejected one.
//! let rows = vec![Sequence::new(&[0], &[1, 2]), Sequence::new(&[0], &[3, 4, 8])];
//! let batch = TokenBatch::new(rows, Padding::new(7), &Device::default())?;
//! let dpo = DpoLossConfig::new().init();
//! let first = FirstBatch::new(&batch)?.pairs()?.with_vocab(9).with_parameters_of(&policy);
//! let findings = first.check_against(
//!     |rows| rows.log_probs(&policy, Model::forward),
//!     |rows| rows.log_probs(reference.model(), Model::forward),
//!     |y| Ok(dpo.forward(Pair::from_concatenated(&y)?).losses()),
//! )?;
//! // "error: The loss is …, and 0.6931 where policy and reference are equal: it is off by …"
//! print!("{findings}");
//! assert!(findings.iter().any(|found| matches!(found, Finding::NotAtReference { .. })));
//! # Ok::<(), InvalidInput>(())
//! ```

mod against;
mod batch;
mod check;
mod data;
mod finding;
mod findings;
mod host;
mod length;
mod packed;
mod parameters;
mod policy;

pub use batch::FirstBatch;
pub use finding::{Finding, FirstLoss, Severity, Side};
pub use findings::Findings;
