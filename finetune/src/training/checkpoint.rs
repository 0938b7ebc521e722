//! Checkpoints: everything that a run needs to go on with the same numbers.

use std::fs;
use std::path::Path;

use burn::module::{Module, ParamGroup};
use burn::optim::ModuleOptimizer;
use burn::store::ModuleRecord;
use burn::tensor::Bytes;
use burn_preference::data::Cursor;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::run_folder::{RunFolder, remove_checkpoints};
use crate::failure::Failure;
use crate::files::whole::write_folder;
use crate::model::Decoder;

/// The state of a run besides its weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub(super) step: usize,
    pub(super) cursor: Cursor,
    pub(super) best: Option<Best>,
    /// Evaluations since the best one.
    pub(super) stale: usize,
    pub(super) task: Value,
    /// Settings that have to be the same when the run goes on.
    pub(super) settings: Value,
}

/// The evaluation with the smallest held-out loss so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Best {
    /// The step before the evaluation.
    pub(super) step: usize,
    /// The held-out loss.
    pub(super) loss: f64,
    /// The statistics of the task that the loss was measured with.
    pub(super) task: Value,
}

/// A run between two steps.
pub(super) struct Checkpoint {
    pub(super) state: State,
    pub(super) policy: Decoder,
    /// The weights of the best evaluation.
    pub(super) best_policy: Decoder,
    pub(super) optimizer: ModuleOptimizer,
}

/// The parameters that are trained: adapters and a new head of a reward model, or all of it.
fn trained_part(model: &Decoder) -> ParamGroup {
    if model.has_adapters() {
        ParamGroup::from_any_predicates(vec!["adapter", "score"])
    } else {
        ParamGroup::all()
    }
}

impl Checkpoint {
    /// Goes on where the last checkpoint of `folder` ends; `self` is the beginning of the same run.
    /// Without a checkpoint it stays the beginning.
    pub(super) fn resume(self, folder: &RunFolder) -> Result<Self, Failure> {
        let Some((_, path)) = folder.checkpoints()?.pop() else {
            return Ok(self);
        };
        // All at once: Burn would open the file again when a tensor is first needed, and by then the
        // process that writes may have removed it.
        let read = |name: &str| -> Result<Bytes, Failure> {
            let path = path.join(name);
            let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok(Bytes::from_bytes_vec(bytes))
        };
        let record = |name: &str| -> Result<ModuleRecord, Failure> {
            Ok(ModuleRecord::from_bytes(read(name)?)?.allow_partial(true))
        };
        Ok(Self {
            state: read_state(&path, &self.state.settings)?,
            best_policy: self.policy.clone().load_record(record("best.bpk")?),
            policy: self.policy.load_record(record("policy.bpk")?),
            optimizer: self.optimizer.from_bytes(read("optimizer.bpk")?)?,
        })
    }

    /// Keeps the weights of an evaluation, and the statistics of its task, if its loss is the
    /// smallest so far.
    pub(super) fn keep_best(&mut self, loss: f64, task: Value) {
        let step = self.state.step;
        let best = self.state.best.as_ref();
        if best.is_none_or(|best| loss < best.loss) {
            self.state.best = Some(Best { step, loss, task });
            self.state.stale = 0;
            self.best_policy = self.policy.clone();
        } else {
            self.state.stale += 1;
        }
    }

    /// Saves a whole checkpoint, and removes older ones when it is on the disk.
    pub(super) fn save(&self, folder: &RunFolder) -> Result<(), Failure> {
        let older = folder.checkpoints()?;
        let to = folder.0.join(format!("checkpoint-{}", self.state.step));
        let part = || trained_part(&self.policy);
        write_folder::<Failure>(&to, |folder| {
            let record = |model: &Decoder| model.clone().into_record_group(part());
            record(&self.policy).save(folder.join("policy.bpk"))?;
            record(&self.best_policy).save(folder.join("best.bpk"))?;
            self.optimizer.save(folder.join("optimizer.bpk"))?;
            let state = serde_json::to_string_pretty(&self.state)?;
            let file = folder.join("state.json");
            Ok(fs::write(&file, state).map_err(|error| format!("{}: {error}", file.display()))?)
        })?;
        remove_checkpoints(older)
    }
}

fn read_state(checkpoint: &Path, settings: &Value) -> Result<State, Failure> {
    let file = checkpoint.join("state.json");
    let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    let state: State =
        serde_json::from_str(&text).map_err(|e| format!("{}: {e}", file.display()))?;
    if state.settings != *settings {
        let what = first_difference("", &state.settings, settings);
        return Err(format!("--resume: the saved run has other settings: {what}").into());
    }
    Ok(state)
}

/// The first setting that differs, with both of its values.
fn first_difference(at: &str, saved: &Value, now: &Value) -> String {
    if let (Value::Object(a), Value::Object(b)) = (saved, now) {
        for key in a.keys().chain(b.keys()) {
            let (a, b) = (&saved[key], &now[key]);
            if a != b {
                return first_difference(&format!("{at} {key}"), a, b);
            }
        }
    }
    format!("{} was {saved} and is {now}", at.trim_start())
}
