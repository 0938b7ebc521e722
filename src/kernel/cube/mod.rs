//! The kernel for GPUs. Burn's own matmul computes the products. The logits are always f32,
//! whatever the type of the operands. The two kernels of `rows.rs` compute the rest; the two of
//! `comparison.rs` do so for the divergence of two models.
//!
//! A forward goes through blocks of rows. The backward of a trained head goes through blocks of
//! *words*, each with all rows. So each row of the weight's gradient is one product and is written
//! once.
//!
//! f64 uses the generic kernel, as on other backends.

mod backend;
mod block;
#[allow(
    clippy::all,
    clippy::pedantic,
    unused_assignments,
    reason = "kernels are written in CubeCL's part of Rust"
)]
mod comparison;
mod fusion;
mod head;
#[allow(
    clippy::all,
    clippy::pedantic,
    reason = "kernels are written in CubeCL's part of Rust"
)]
mod rows;
mod tensors;
#[cfg(all(test, feature = "flex"))]
mod tests;
