//! The objective of a run, and what it needs.

use std::fs;

use burn_preference::ReferencedPair;
use burn_preference::config::ObjectiveConfig;
use burn_preference::needs::{ColumnKind, Examples, Needs, Values};
use finetune::Failure;
use serde_json::{Value, json};

/// An objective over the batches that this program makes.
pub(crate) struct ChosenObjective {
    /// The config, as it was written.
    pub(crate) written: Value,
    /// The config of the library.
    pub(crate) config: ObjectiveConfig,
    /// The needs of the objective over those batches.
    pub(crate) needs: Needs,
}

impl ChosenObjective {
    /// Reads an objective from a file, its config as JSON, or its name. Where it takes several kinds
    /// of examples, `is_unpaired` decides.
    ///
    /// # Errors
    ///
    /// No objective has this name, a value of its config is wrong, or it needs a column of the data.
    pub(crate) fn read(loss: &str, is_unpaired: bool) -> Result<Self, Failure> {
        let text = fs::read_to_string(loss).unwrap_or_else(|_| loss.to_owned());
        let written: Value = if text.trim_start().starts_with('{') {
            serde_json::from_str(&text)?
        } else {
            json!({ "loss": text.trim() })
        };
        let config: ObjectiveConfig = serde_json::from_value(written.clone())?;
        let takes = config.takes();
        if takes.is_empty() {
            // Its parts have no batch in common: the error says so.
            config.build::<ReferencedPair>()?;
        }
        config.check()?;
        let known = takes.iter().filter(|needs| is_known(needs));
        // Rather one whose step may be cut; of those that are left, the first has the fewest columns.
        let fitting = known.min_by_key(|n| (is_alone(n) != is_unpaired, n.whole_batch));
        let needs = fitting.ok_or_else(|| unknown(&takes))?.clone();
        Ok(Self {
            written,
            config,
            needs,
        })
    }

    /// True if the objective trains a reward model.
    pub(crate) fn learns_rewards(&self) -> bool {
        self.needs.values == Values::Rewards
    }
}

/// True if the needs are those of completions that are judged alone.
fn is_alone(needs: &Needs) -> bool {
    matches!(needs.examples, Examples::Unpaired | Examples::Completions)
}

/// True if this program reads such examples, and makes such columns.
fn is_known(needs: &Needs) -> bool {
    let makes = |column: &ColumnKind| match column {
        ColumnKind::Baseline | ColumnKind::Shift => needs.examples == Examples::Unpaired,
        ColumnKind::StepTokens => true,
        _ => false,
    };
    let reads = match needs.examples {
        Examples::Pairs | Examples::Ranked => true,
        // A step is as many forwards as it takes.
        Examples::Demonstrations | Examples::Samples => needs.columns == [ColumnKind::StepTokens],
        _ => is_alone(needs),
    };
    reads && needs.columns.iter().all(makes)
}

fn unknown(takes: &[Needs]) -> String {
    let takes: Vec<String> = takes.iter().map(ToString::to_string).collect();
    format!(
        "it takes {}: examples or columns that are not read here",
        takes.join("; or ")
    )
}
