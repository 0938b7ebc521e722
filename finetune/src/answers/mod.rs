//! Answers of a model, and judges of them: what on-policy data is made of.

mod answer;
mod judge;

pub use answer::{Answer, Answering, best_pair, is_json};
pub use judge::Judge;
