//! Preference-optimisation objectives for [Burn](https://burn.dev), for your own training loop.
//!
//! A preference objective trains a model on completions that were compared: the chosen one of a
//! pair becomes more likely, the rejected one less, and most objectives keep the model near a frozen
//! copy of itself, the reference. DPO, IPO, KTO, SimPO and ORPO are some of them.
//!
//! The loss is one line of arithmetic. The mistakes around it raise no error, and the model learns
//! something else: an optimiser moves the reference as well, the prompt or padding is scored, parts
//! of a step are averaged wrongly, a tail rounds to 0, a loss ignores an option. So here:
//!
//! - **The data of an objective is its input type.** One that needs a reference cannot be called
//!   without it, and one that has no use for a reference cannot be given one.
//! - **Losses are per example, and the reduction comes last**, so that micro-batches add up to one
//!   large batch: [`LossOutput`].
//! - **A convention on which implementations disagree is a field**, with a documented default.
//! - **Logits need not exist at once**, and only counted tokens reach the head: [`LmHead`].
//! - **Every value is checked** against independent f64 code and finite differences, and
//!   [against others' code and papers' statements](loss#what-they-were-checked-against) where there
//!   are some.
//! - **The model and the loop are yours**, on any backend of Burn.
//!
//! ```text
//! logits ─→ TokenLogProbs ─→ SequenceLogProbs ─→ batch ─→ Objective ─→ LossOutput ─→ backward
//!                              sum and length     policy,               per-example
//!                              stay together      reference, data       losses, rewards
//! ```
//!
//! # One step
//!
//! The model is yours; its forward returns logits, or hidden states and the head. The crate does
//! what is below the model: log-probabilities of both completions, those of the reference, the loss.
//!
//! ```
//! use burn::module::Module;
//! use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
//! use burn::tensor::{Device, Int, Tensor};
//! use burn_preference::tokens::{Padding, Sequence, TokenBatch};
//! use burn_preference::{DpoLossConfig, Frozen, LmHead, Objective, Pair};
//!
//! #[derive(Module, Debug)]
//! struct Model {
//!     embedding: Embedding,
//!     head: Linear,
//! }
//!
//! impl Model {
//!     /// Hidden states and the head; or logits, `Tensor<3>`.
//!     fn hidden(&self, ids: Tensor<2, Int>) -> (Tensor<3>, LmHead) {
//!         (self.embedding.forward(ids), LmHead::from(&self.head))
//!     }
//! }
//!
//! let device = Device::default();
//! let policy = Model {
//!     embedding: EmbeddingConfig::new(9, 4).init(&device),
//!     head: LinearConfig::new(4, 9).init(&device),
//! };
//! let reference = Frozen::new(&policy);
//!
//! // One pair in one forward: the chosen row, then the rejected one; token 0 is the prompt.
//! let pair = vec![Sequence::new(&[0], &[1, 2]), Sequence::new(&[0], &[3])];
//! let batch = TokenBatch::new(pair, Padding::new(8), &device)?;
//!
//! let relative = batch
//!     .log_probs(&policy, Model::hidden)?
//!     .relative_to(batch.reference(&reference, Model::hidden)?)?;
//! let pair = Pair::from_concatenated(&relative)?;
//! let loss = DpoLossConfig::new().with_beta(0.1).init().forward(pair).mean();
//! // Policy and reference are equal: ln 2.
//! assert!((loss.into_scalar::<f32>() - std::f32::consts::LN_2).abs() < 1e-6);
//! # Ok::<(), burn_preference::InvalidInput>(())
//! ```
//!
//! # Which objective
//!
#![doc = include_str!("../docs/rustdoc/tiers.md")]
//!
//! [`loss`] says of each what it takes, its fields and its paper, and explains the symbols of the
//! formulas. The guide's chapter on [choosing](guide::choosing) starts from the data that you have.
//!
//! # What is where
//!
//! | module | feature | holds |
//! |---|---|---|
//! | [`tokens`] | | token ids as a batch of tensors, and their log-probabilities under a model |
//! | [`log_probs`] | | log-probabilities per token and per sequence, from logits or from hidden states; the divergence of two models |
//! | [`batch`] | | the input of objectives: pairs, unpaired completions, lists, scores |
//! | [`loss`] | | the objectives |
//! | [`part`] | | choices inside an objective: label noise, divergence, normalisation |
//! | [`modifier`] | | objectives made of objectives: an SFT term, weights, mixtures |
//! | [`reference`](mod@reference) | | the reference: frozen, moving; with `cache`, its log-probabilities on disk |
//! | [`training`] | | metrics, a check of the [first batch](training::first_batch), sums over workers |
//! | | `optim` | clipping by the [global norm](training::gradients), [accumulation](training::accumulation) |
//! | | `train` | items and metrics for [burn-train](training::burn_train) |
//! | [`data`] | `data` | examples from JSON lines, splits, truncation with a report, batches, exact resume |
//! | | `parquet` | the same from Parquet files |
//! | [`config`] | | objectives chosen by a file |
//! | [`needs`] | | needs of an objective, which a program asks for before it reads data |
//! | [`objective`] | | the trait of objectives, and reductions of their losses |
//! | [`math`], [`error`] | | numerics that keep both tails; typed errors |
//! | [`guide`] | | recipes, from the data that you have to a run that you can trust |
//!
//! The names that a program uses most are exported here as well: `burn_preference::DpoLoss`.
//!
//! # What you can rely on
//!
//! - **Errors.** What can fail returns a `Result`, and [`Error`] holds all of them for a `?`. A panic
//!   stands in three places, and the documentation names each one: a config's `init`, methods of a
//!   trait whose signature has no room for an error, and an index in brackets.
//! - **Extremes.** Finite log-probabilities give finite losses and gradients, and a NaN stays a NaN:
//!   [`loss`](loss#extremes).
//! - **Reproducibility.** On Flex, the same inputs give the same bits on any number of threads:
//!   [`training`](training#reproducibility).
//! - **Memory.** If a forward returns hidden states and the head, their logits are computed block by
//!   block: [`log_probs`](log_probs#memory).
//! - **Precision.** bf16 and f16 logits become f32 before the normaliser, and sums are f32. Weights
//!   are yours: a bf16 weight does not move at preference learning rates, because an AdamW step of
//!   1e-6 is below its resolution. Train f32 weights, or LoRA factors in f32.
//!
//! # Backends
//!
//! No backend is chosen for you. `flex`, `ndarray`, `tch`, `wgpu`, `vulkan`, `metal`, `cuda`,
//! `rocm`, `cpu`, `remote`, `remote-websocket`, `remote-server` and `rayon`, `simd` forward to
//! Burn's features of these names.
//!
//! This is a community crate, not affiliated with Burn's authors.

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(all(
        feature = "cache",
        feature = "data",
        feature = "optim",
        feature = "train"
    )),
    allow(
        rustdoc::broken_intra_doc_links,
        reason = "links to what is not built; the documentation is built with everything"
    )
)]
// `pub` is the public interface here; an example or a test has none.
#![warn(unreachable_pub)]

// The code of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod any_error;
pub mod batch;
pub mod config;
#[cfg(feature = "data")]
pub mod data;
mod declare;
pub mod error;
pub mod guide;
mod hyperparameter;
#[allow(
    deprecated,
    reason = "NdArray and LibTorch: supported while they exist"
)]
#[allow(
    unused_variables,
    reason = "without a backend, nothing is dispatched to"
)]
mod kernel;
pub mod log_probs;
pub mod loss;
pub mod math;
pub mod modifier;
pub mod needs;
pub mod objective;
pub mod part;
pub mod reference;
pub mod tokens;
pub mod training;

pub use any_error::Error;
pub use batch::{
    Batch, Column, Demonstrations, GroupedReward, Pair, PolicyPair, Ranked, Ratios, ReferencedPair,
    RewardPair, Samples, Scored, Unpaired, WithBaseline, WithMargin, WithMeanMargin, WithNll,
    WithPreference, WithScores, WithSequenceKl, WithShift, WithStepTokens, WithTies, WithValue,
    WithWeights,
};
pub use error::{InvalidHyperparameter, InvalidInput};
pub use log_probs::{
    LmHead, LogProbs, RelativeLogProbs, RelativeTokenLogProbs, SequenceLogProbs, TokenLogProbs,
    TokenStatistics,
};
pub use loss::*;
pub use modifier::{Mixture, PolicySide, SftTerm, Weighted, WithoutColumn};
pub use objective::{LossOutput, Objective};
pub use part::{
    Advantage, Divergence, GapDistance, KlEstimator, LabelNoise, Link, NllNormalization,
    Normalization, RatioClip, RatioLevel, RegressionUnit, TieModel, TokenNormalization,
    TokenWeighting,
};
pub use reference::{Frozen, ReferenceSchedule};
pub use training::class_ratio::ClassRatio;
pub use training::metrics::{BatchMetrics, Metrics};
pub use training::state::KlEstimate;
