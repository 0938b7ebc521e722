//! Preference-optimisation objectives for [Burn](https://burn.dev), for your own training loop.
//!
//! ```text
//! logits ─→ TokenLogProbs ─→ SequenceLogProbs ─→ batch ─→ Objective ─→ LossOutput ─→ backward
//!                              sum and length     policy,               per-example
//!                              stay together      reference, data       losses, rewards
//! ```
//!
//! - **What an objective needs is its input type.** One that needs a reference cannot be called
//!   without; one that has no use for it cannot be given one. No option is silently ignored.
//! - **Per example first, reduction last.** [`LossOutput`] holds a loss for every example; you
//!   reduce it with [`mean`](LossOutput::mean), [`normalized_by`](LossOutput::normalized_by) and
//!   so on, and micro-batches add up to one large batch.
//! - **Every convention on which implementations disagree is a field**, with a documented default.
//! - **Every value is checked** against independent f64 code and finite differences, and against
//!   what [second opinions](#second-opinions) there are.
//!
//! # One step
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
//! # Objectives
#![doc = include_str!("../docs/objectives.md")]
//!
//! [`modifier`] holds what goes on top of them, [`training::state`] what some of them need from
//! earlier batches, and [`config`] chooses one by a file. Peers in brackets have the objective, but their
//! values were not compared, or are another formula's.
//!
//! # Second opinions
//!
//! All objectives agree, with their gradients, with scalar f64 code of our tests that was written
//! from the papers. That code may misread a paper as the objective does, so there are two more
//! witnesses: code that others wrote, and what a paper says of the minimum of its loss, tested by
//! optimising a policy over three completions on every pair of them. A dash: no values to compare,
//! or no such statement that we know of.
//!
#![doc = include_str!("../docs/checked.md")]
//!
//! # Rewards
//!
//! The rewards of [`LossOutput`] are for logs: β (IPO's τ) times the log-ratio, or log-probability,
//! that the loss compares, after a divergence or a normalisation. What acts on the margin besides is
//! not in them: a target margin, DPOP's penalty, R-DPO's length, DPO-Shift's λ, BCO's δ, β-DPO's β
//! of the batch, TDPO's KL. Of a reward model they are what it says. The objectives say so, and what their authors log. TRL's rewards
//! are β·ρ under any divergence or normalisation.
//!
//! # Errors
//!
//! What can fail returns a `Result`, and [`Error`] is all of them for a `?`. The exceptions are
//! few: a config's `init`, Burn's idiom, for values that stand in the program, and places where a
//! trait has no room for an error; their documentation names the panic.
//!
//! # Precision
//!
//! bf16 and f16 logits are upcast to f32 before the normaliser, and sums are f32. Weights are
//! yours: bf16 weights do not move at preference learning rates (an AdamW step of 1e-6 is below
//! their resolution), so train f32 weights or LoRA factors in f32.
//!
//! # Extremes
//!
//! - **Finite log-probs give finite losses and gradients** where the true value fits the number
//!   type: log-probs of −1e5 and reward margins of ±1e4 do in f32, for every objective. Exponents
//!   are held at 80 and IPO's square at 1e18 (f32), as the objectives say; a square beyond the type
//!   is ∞.
//! - **A NaN that goes in comes out**, in the example that it belongs to: of a log-prob, of a score
//!   in a list, of a column. One of an absent candidate or a token that does not count does not.
//! - **±∞ gives the limit, ±∞ or NaN**, never another number.
//! - **An empty completion** has sum, mean and length 0, and no gradient: its log-ratio is 0. What
//!   that makes of a loss is the objective's business: DPO of two empty completions is ln 2.
//! - **An empty batch** has mean and sum 0.
//! - **Hyperparameters are numbers that f32 holds**: 1e-300 would be 0 there, and is an error.
//!
//! WGSL (the shading language of `wgpu`) lets a device assume that there is no NaN, so that the
//! second point is the device's to keep; and `ln(1 + u)` is right there to 1e-7 absolutely: a loss
//! of 1e-9 may read 0, but its gradient keeps its digits.
//!
//! # Reproducibility
//!
//! On Flex, the same inputs give the same bits on any number of threads: log-probs, losses of
//! every objective (those that sort included), gradients, a training run with AdamW. Not promised
//! are the same bits for another batch size or layout of the head, whose sums are taken in another
//! order; nor on another processor, whose vectors are shorter or longer; nor on GPUs, whose atomic
//! additions have no order. Lists break ties by their own order, on every device. What sorts
//! by Burn leaves it to the backend which of equal values comes first: [`AotLoss`] has the same
//! losses, and its gradient goes to either; `Pair::subsampled` keeps either token of equal noise.
//!
//! # Memory
//!
//! The logits of 4 × 512 tokens over 128k words are 1 GB in f32, and their gradient another.
//! A forward that returns hidden states and the head instead ([`log_probs::ModelOutput`]) drops the
//! rows that predict no completion token, and never holds all logits; everything after it stays as
//! it is. [`TokenLogProbs::from_hidden`] is the call below it, for tensors of your own.
//! [`TokenStatistics`] come from the same walk.
//!
//! # Around the loss
//!
//! The [`guide`] goes from the data you have to a run you can trust: choosing an objective, the
//! training loop, the reference, memory, scale, reproducibility, and TRL's options in ours.
//!
//! | feature | gives |
//! |---|---|
//! | `data` | [`data`]: rows of JSON lines, splits, truncation with a report, batches, exact resume |
//! | `cache` | [`reference::cache`]: reference log-probs on disk |
//! | `optim` | [`training::gradients`], [`training::accumulation`]: clipping by the global norm, parts of a step |
//! | `train` | [`training::burn_train`]: items and metrics for burn-train |
//!
//! [`tokens`], and of [`training`] the check of the [first batch](training::first_batch), which says
//! why a loss is not ln 2, metrics and sums over workers are always there.
//!
//! # Backends
//!
//! No backend is chosen for you. `flex`, `ndarray`, `tch`, `wgpu`, `vulkan`, `metal`, `cuda`,
//! `rocm`, `cpu`, `remote`, `remote-websocket`, `remote-server` and `rayon`, `simd` forward to
//! Burn's features of these names.
//!
//! This is a community crate, not affiliated with Burn's authors.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(all(feature = "cache", feature = "data", feature = "optim", feature = "train")),
    // Links to what is not built; the documentation is built with everything.
    allow(rustdoc::broken_intra_doc_links)
)]

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
pub mod log_probs;
pub mod loss;
pub mod math;
pub mod modifier;
pub mod objective;
pub mod part;
pub mod reference;
pub mod tokens;
pub mod training;

pub use any_error::Error;
pub use batch::{
    Batch, Column, Pair, PolicyPair, Ranked, ReferencedPair, RewardPair, Scored, Unpaired,
    WithBaseline, WithMargin, WithMeanMargin, WithNll, WithPreference, WithScores, WithSequenceKl,
    WithShift, WithTies, WithValue, WithWeights,
};
pub use error::{InvalidHyperparameter, InvalidInput};
pub use log_probs::{
    LmHead, LogProbs, RelativeLogProbs, RelativeTokenLogProbs, SequenceLogProbs, TokenLogProbs,
    TokenStatistics,
};
pub use loss::{
    AlphaPoLoss, AlphaPoLossConfig, AotLoss, AotLossConfig, ApoDownLoss, ApoDownLossConfig,
    ApoZeroLoss, ApoZeroLossConfig, AsftLoss, AsftLossConfig, AstarPoLoss, AstarPoLossConfig,
    BcoLoss, BcoLossConfig, BetaDpoLoss, BetaDpoLossConfig, BradleyTerryLoss,
    BradleyTerryLossConfig, BradleyTerryTiesLoss, BradleyTerryTiesLossConfig, CalDpoLoss,
    CalDpoLossConfig, ChipoLoss, ChipoLossConfig, ClassRatio, CpoLoss, CpoLossConfig, DavidsonLoss,
    DavidsonLossConfig, DiscopopLoss, DiscopopLossConfig, DpoLoss, DpoLossConfig, DpoShiftLoss,
    DpoShiftLossConfig, DpopLoss, DpopLossConfig, DroLoss, DroLossConfig, ExoListLoss,
    ExoListLossConfig, ExoPairLoss, ExoPairLossConfig, GpoLoss, GpoLossConfig, HdpoLoss,
    HdpoLossConfig, HingeLoss, HingeLossConfig, InfoNcaLoss, InfoNcaLossConfig, IpoLoss,
    IpoLossConfig, KlEstimate, KtoLoss, KtoLossConfig, LipoLoss, LipoLossConfig, NcaListLoss,
    NcaListLossConfig, NcaLoss, NcaLossConfig, NpoLoss, NpoLossConfig, OrpoLoss, OrpoLossConfig,
    PlackettLuceLoss, PlackettLuceLossConfig, ProLoss, ProLossConfig, QrpoLoss, QrpoLossConfig,
    RaoKupperLoss, RaoKupperLossConfig, RdpoLoss, RdpoLossConfig, RebelLoss, RebelLossConfig,
    RewardRankingLoss, RewardRankingLossConfig, RpoLoss, RpoLossConfig, RrhfLoss, RrhfLossConfig,
    SdpoLoss, SdpoLossConfig, SimnpoLoss, SimnpoLossConfig, SimperLoss, SimperLossConfig,
    SimpoLoss, SimpoLossConfig, SlicHfLoss, SlicHfLossConfig, SppoLoss, SppoLossConfig, TdpoLoss,
    TdpoLossConfig, TpoLoss, TpoLossConfig,
};
pub use modifier::{Mixture, PolicySide, SftTerm, Weighted, WithoutColumn};
pub use objective::{LossOutput, Objective};
pub use part::{
    Divergence, GapDistance, LabelNoise, Link, NllNormalization, Normalization, RegressionUnit,
    TieModel,
};
pub use reference::{Frozen, ReferenceSchedule};
pub use training::metrics::{BatchMetrics, Metrics};
