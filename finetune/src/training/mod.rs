//! The training loop.
//!
//! | file | holds |
//! |---|---|
//! | `batching` | examples and sequences as tensors |
//! | `reference` | the reference's log-probabilities, cached or live |
//! | `values` | what a model gives completions, against the reference |
//! | `part` | some examples of a step: their losses, and the check of the first batch |
//! | `task`, `kinds` | an objective with the kind of examples that it learns from |
//! | `options`, `schedule` | length and rate of a run |
//! | `workers` | parts of a step at the same time |
//! | `run_folder`, `checkpoint` | what a run leaves on disk, and goes on from |
//! | `progress`, `figure` | what a run shows |
//! | `trainer` | the loop |

mod batching;
mod checkpoint;
mod figure;
mod kinds;
mod options;
mod part;
mod progress;
mod reference;
mod run_folder;
mod schedule;
mod task;
mod trainer;
mod values;
mod workers;

pub use batching::Batching;
pub use figure::draw_metrics;
pub use kinds::{
    OnSamples, Plain, WithKlEstimate, WithRewardShift, WithTokenCount, completions, demonstrations,
    reward_lists, samples, samples_against,
};
pub use options::TrainOptions;
pub use part::{CollatedTokens, Part};
pub use reference::ReferenceLogProbs;
pub use run_folder::RunFolder;
pub use schedule::Schedule;
pub use task::Task;
pub use trainer::{Trained, Trainer, check_whole_steps};
pub use values::{AgainstReference, CompletionValues, StepContext, rewards};
pub use workers::Workers;
