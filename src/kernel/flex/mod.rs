//! The kernels of Flex for f32, f16 and bf16. f64 uses the generic kernel, as on other backends.
//!
//! Rayon runs tiles of rows × words in parallel. The computation of a tile does not depend on the
//! number of threads, and the results of several tiles are combined in a fixed order. So the final
//! results do not depend on the number of threads either.

mod backend;
mod comparison;
mod elementwise;
mod head;
mod logits;
mod partial;
mod row;
mod tensors;
#[cfg(test)]
mod tests;

pub(crate) use elementwise::{ln, narrow, power, twice_atanh};
