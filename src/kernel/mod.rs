//! The log-probability of one word per row, as one differentiable operation on every backend; and
//! the divergence of two models at a row, as another.
//!
//! ```text
//! x_n = W h_n + b,    log p_n = x_n[y_n] − ln Σ_v exp x_n[v]
//! ```
//!
//! `entry.rs` has the functions that the crate calls. They ask Burn for an operation
//! (`operation.rs`). Under autodiff the operation has a backward written by hand (`autodiff.rs`).
//! Every backend has the computations of `backend.rs`, whose default is Burn's own operations
//! (`generic.rs`). Flex and GPUs have their own kernels (`flex/`, `cube/`).
//!
//! # Which kernel runs when
//!
//! | device | input | operands | kernel |
//! |---|---|---|---|
//! | any | head or logits | f64 | `generic.rs` |
//! | Flex | head | f32, fewer than 10⁵ multiplications a product and at most 1024 words | `generic.rs` |
//! | Flex | head | every other one in f32, f16 or bf16, in any layout | `flex/head/` |
//! | Flex | logits | f32, f16 or bf16 | `flex/logits.rs` |
//! | CUDA, ROCm, Vulkan, Metal, WebGPU, CubeCL's CPU | head or logits | f32, f16 or bf16 | `cube/`; behind Burn's fusion, by way of `cube/fusion.rs` |
//! | `NdArray`, `LibTorch`, remote | head or logits | all | `generic.rs` |
//! | a backend that `burn` has and this crate's features do not | head or logits | all | the steps of `generic.rs`, which the tape records: logits stay in memory |
//! | any | two models | one of which takes `generic.rs` by the rows above | `generic.rs` |
//! | Flex, and all of CubeCL | two models | every other two | `flex/head/`, `flex/logits.rs`; `cube/` |
//! | any | a head whose logits are wanted (`head_logits`) | all | the first steps of `generic.rs`, which the tape records |
//!
//! Rows are the positions that predict a counted token: whoever calls has dropped the others, and
//! for a packed batch has gathered them. Logits of a padded batch come whole, with a mask.
//!
//! A head is computed in blocks or tiles, and all logits never exist at once. The gradients that
//! are wanted decide what a forward saves:
//!
//! | gradient of | saved | products with the head, forward and backward |
//! |---|---|---|
//! | nothing | nothing | 1 |
//! | hidden states alone | ∂log p/∂h of each row | 2, both in the forward |
//! | weight or bias | the normaliser, and as many logits as may be kept (on GPUs none) | 4, or 3 for kept logits |
//!
//! Of two models, policy and reference, these are 2, 3 and 6; the third keeps five numbers per row
//! and no logits.
//!
//! All of this is chosen in `choice.rs`.

mod autodiff;
mod backend;
mod choice;
#[cfg(feature = "_cube")]
mod cube;
mod discrepancy;
mod entry;
#[cfg(feature = "flex")]
mod flex;
mod forward;
mod generic;
mod head;
mod operation;
mod slope;

pub use discrepancy::Discrepancy;
pub(crate) use entry::{
    Outputs, head_discrepancy, head_log_probs, head_logits, logits_discrepancy, logits_log_probs,
};
#[cfg(feature = "flex")]
pub(crate) use flex::{ln, narrow, power, twice_atanh};
pub(crate) use head::{HeadTensors, Shaping};
#[cfg(feature = "flex")]
pub(crate) use slope::slope_node;
pub(crate) use slope::with_slope;
