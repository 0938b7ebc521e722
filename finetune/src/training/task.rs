//! The trait that an objective implements for the loop.

use std::fmt::Debug;

use burn_preference::Metrics;
use burn_preference::data::Example;
use burn_preference::tokens::Sequence;
use serde_json::Value;

use super::batching::Batching;
use super::part::Part;
use super::values::StepContext;
use crate::data::Examples;
use crate::failure::Failure;
use crate::model::Decoder;

/// An objective with the kind of examples that it learns from.
pub trait Task: Sync {
    /// The label of an example.
    type Label: Clone + Debug + Send + Sync + 'static;

    /// Sequences of an example whose log-probabilities are asked for.
    fn sequences(example: &Example<Vec<u32>, Self::Label>) -> Vec<Sequence> {
        example.sequences()
    }

    /// True if the loss of an example depends on the rest of its batch.
    fn whole_batch(&self) -> bool;

    /// The held-out metric that is smallest for the best weights; `None` if nothing of held-out
    /// examples is, and those of the last step are kept. DFT's loss is none: it rises while the policy
    /// learns.
    fn measured_by(&self) -> Option<&'static str> {
        Some("loss")
    }

    /// Prepares what all parts of a step, or of what is measured, have in common, before the first
    /// of them.
    ///
    /// # Errors
    ///
    /// As [`Part::losses`].
    fn begin(
        &mut self,
        _: &Decoder,
        _: &[Examples<Self::Label>],
        _: &StepContext<'_>,
    ) -> Result<(), Failure> {
        Ok(())
    }

    /// Makes a part of these examples.
    ///
    /// # Errors
    ///
    /// The step has not begun.
    fn part(
        &self,
        examples: Examples<Self::Label>,
        batching: &Batching,
    ) -> Result<Box<dyn Part + '_>, Failure>;

    /// Updates the statistics that it holds, by the metrics of a whole step.
    fn observe(&mut self, _: &Metrics) {}

    /// The statistics that it holds, for a run that goes on later.
    fn state(&self) -> Value {
        Value::Null
    }

    /// Restores such statistics.
    ///
    /// # Errors
    ///
    /// They are of another task.
    fn restore(&mut self, _: Value) -> Result<(), Failure> {
        Ok(())
    }
}
