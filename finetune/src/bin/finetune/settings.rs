//! Settings that have to be the same when a run goes on.

use burn_preference::reference::cache::{CacheError, Fingerprint};
use burn_preference::tokens::Sequence;
use finetune::Decoder;
use serde_json::{Value, json};

use crate::args::Args;

impl Args {
    /// Settings that have to be the same when a run goes on.
    pub(crate) fn settings(
        &self,
        objective: &Value,
        workers: usize,
        contents: &Fingerprint,
    ) -> Value {
        json!({
            "model": self.model,
            "adapter": self.adapter,
            "data": self.data,
            "held_out_data": self.held_out_data,
            "held_out": self.held_out,
            "skip_errors": self.skip_errors,
            "group": self.group,
            "plain": self.plain,
            "columns": self.columns,
            "max_length": self.max_length,
            "loss": objective,
            "reference": format!("{:?}", self.reference),
            "device": self.device,
            "full": self.full,
            "rank": self.rank,
            "alpha": self.alpha,
            "targets": self.targets,
            "quantize": self.quantize.map(|bits| format!("{bits:?}")),
            "dtype": format!("{:?}", self.dtype),
            "budget": self.budget,
            "layout": format!("{:?}", self.layout),
            "workers": workers,
            "weights and tokens": contents.to_string(),
        })
    }

    /// The fingerprint of what is frozen.
    pub(crate) fn fingerprint(&self, frozen: &Decoder) -> Result<Fingerprint, CacheError> {
        let fingerprint = Fingerprint::of(frozen)?;
        Ok(match self.quantize {
            Some(bits) => fingerprint.with("bits", format!("{bits:?}").as_bytes()),
            None => fingerprint,
        })
    }
}

/// The fingerprint of what a run begins with, whatever the names of its files are: weights, token ids,
/// and labels with their scores, rewards and log-probabilities.
pub(crate) fn contents(weights: Fingerprint, sequences: &[Sequence], labels: &str) -> Fingerprint {
    let mut bytes = Vec::new();
    for sequence in sequences {
        let lengths = [sequence.prompt().len(), sequence.completion().len()];
        bytes.extend(lengths.iter().flat_map(|len| (*len as u64).to_le_bytes()));
        bytes.extend(sequence.ids().iter().flat_map(|id| id.to_le_bytes()));
    }
    let contents = weights.with("tokens", &bytes);
    contents.with("labels", labels.as_bytes())
}
