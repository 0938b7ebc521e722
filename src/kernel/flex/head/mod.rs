//! The kernel of a head: three products, with passes over tiles of logits between them.

mod backward;
mod buffers;
mod comparison;
mod deltas;
mod forward;
mod gradient;
mod panels;
mod passes;
mod problem;
mod product;
mod slope;
mod words;

pub(crate) use comparison::Pair;
pub(crate) use problem::Problem;
