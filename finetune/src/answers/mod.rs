//! Answers of a model, and judges of them: what on-policy data is made of.

mod answer;
mod judge;

pub use answer::{Answer, Answering, best_pair, group, is_json, log_probs};
pub use judge::Judge;
