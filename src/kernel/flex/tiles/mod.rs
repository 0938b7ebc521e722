//! The kernel for any weight and any machine. `gemm` computes the matrix products of the tiles.
//!
//! A task is one tile: a matrix product on the calling thread, then passes over the rows of the
//! tile.

mod backward;
mod forward;
mod problem;

pub(super) use problem::Tiles;
