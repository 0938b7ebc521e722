//! A part of a step: some of its examples, with the objective that takes them.

use std::fmt::Debug;

use burn::tensor::Tensor;
use burn_preference::data::{
    Demonstration, DemonstrationTokens, PairTokens, Preference, RankedTokens, Sample, SampleTokens,
    Scores, UnpairedTokens,
};
use burn_preference::tokens::{PackedBatch, TokenBatch};
use burn_preference::training::first_batch::{Finding, FirstBatch};
use burn_preference::training::metrics::Observe;
use burn_preference::{BatchMetrics, InvalidInput, Objective};

use super::values::{CompletionValues, StepContext, forked};
use crate::failure::Failure;
use crate::model::Decoder;

/// Examples that go through the model at once. Made by [`Task::part`](super::Task::part).
pub trait Part {
    /// Losses of the examples, `[examples]`, and metrics of them.
    ///
    /// # Errors
    ///
    /// The batching, the reference or the objective's batch refuses something.
    fn losses(
        &self,
        model: &Decoder,
        context: &StepContext<'_>,
    ) -> Result<(Tensor<1>, BatchMetrics), Failure>;

    /// The same losses and metrics by as many forwards as the budget asks for, for a model without
    /// autodiff.
    ///
    /// # Errors
    ///
    /// As [`losses`](Self::losses).
    fn measure(
        &self,
        model: &Decoder,
        context: &StepContext<'_>,
    ) -> Result<(Tensor<1>, BatchMetrics), Failure>;

    /// Findings of [`FirstBatch`] about the examples; `tolerance` is that of
    /// [`FirstBatch::with_tolerance`].
    ///
    /// # Errors
    ///
    /// As [`losses`](Self::losses).
    fn check(
        &self,
        model: &Decoder,
        context: &StepContext<'_>,
        tolerance: f64,
    ) -> Result<Vec<Finding>, Failure>;
}

/// Examples of one kind as tensors.
pub trait CollatedTokens: Send + Sync + 'static {
    /// The label of an example.
    type Label: Clone + Debug + Send + Sync + 'static;

    /// The tokens of all completions.
    fn tokens(&self) -> &TokenBatch;

    /// The check of the tokens with their labels.
    ///
    /// # Errors
    ///
    /// As [`FirstBatch::new`], and as the method that takes the labels.
    fn first_batch(&self) -> Result<FirstBatch, InvalidInput>;
}

impl CollatedTokens for PairTokens {
    type Label = Preference;

    fn tokens(&self) -> &TokenBatch {
        &self.tokens
    }

    fn first_batch(&self) -> Result<FirstBatch, InvalidInput> {
        FirstBatch::new(&self.tokens)?.pairs()
    }
}

impl<L: Clone + Debug + Send + Sync + 'static> CollatedTokens for UnpairedTokens<L> {
    type Label = L;

    fn tokens(&self) -> &TokenBatch {
        &self.tokens
    }

    fn first_batch(&self) -> Result<FirstBatch, InvalidInput> {
        FirstBatch::new(&self.tokens)?.unpaired(&self.desirable)
    }
}

impl CollatedTokens for DemonstrationTokens {
    type Label = Demonstration;

    fn tokens(&self) -> &TokenBatch {
        &self.tokens
    }

    fn first_batch(&self) -> Result<FirstBatch, InvalidInput> {
        FirstBatch::new(&self.tokens)
    }
}

impl CollatedTokens for SampleTokens {
    type Label = Sample;

    fn tokens(&self) -> &TokenBatch {
        &self.tokens
    }

    fn first_batch(&self) -> Result<FirstBatch, InvalidInput> {
        FirstBatch::new(&self.tokens)
    }
}

impl CollatedTokens for RankedTokens {
    type Label = Scores;

    fn tokens(&self) -> &TokenBatch {
        &self.tokens
    }

    fn first_batch(&self) -> Result<FirstBatch, InvalidInput> {
        FirstBatch::new(&self.tokens)?.lists(&self.present)
    }
}

/// Makes the batch of an objective of tokens and the model's values.
type MakeBatch<'a, T, Y, B> = Box<dyn Fn(&T, Y) -> Result<B, InvalidInput> + 'a>;

/// A part whose objective takes the batch `B`, which is made of the values `Y`.
struct TypedPart<'a, T, Y, B> {
    tokens: T,
    batch: MakeBatch<'a, T, Y, B>,
    objective: &'a dyn Objective<B>,
}

/// Makes a part: the model's values of `tokens` become a `batch`, and `objective` takes it.
pub(super) fn part<'a, T, Y, B>(
    tokens: T,
    objective: &'a dyn Objective<B>,
    batch: impl Fn(&T, Y) -> Result<B, InvalidInput> + 'a,
) -> Box<dyn Part + 'a>
where
    T: CollatedTokens + 'a,
    Y: CompletionValues + 'a,
    B: Observe + Clone + 'a,
{
    Box::new(TypedPart {
        tokens,
        batch: Box::new(batch),
        objective,
    })
}

impl<T, Y, B: Observe + Clone> TypedPart<'_, T, Y, B> {
    fn of_values(&self, values: Y) -> Result<(Tensor<1>, BatchMetrics), Failure> {
        let batch = (self.batch)(&self.tokens, values)?;
        let output = self.objective.forward(batch.clone());
        Ok((output.losses(), BatchMetrics::observe(&batch, &output)))
    }
}

impl<T: CollatedTokens, Y: CompletionValues, B: Observe + Clone> Part for TypedPart<'_, T, Y, B> {
    fn losses(
        &self,
        model: &Decoder,
        context: &StepContext<'_>,
    ) -> Result<(Tensor<1>, BatchMetrics), Failure> {
        self.of_values(Y::compute(model, self.tokens.tokens(), context)?)
    }

    fn measure(
        &self,
        model: &Decoder,
        context: &StepContext<'_>,
    ) -> Result<(Tensor<1>, BatchMetrics), Failure> {
        self.of_values(Y::measure(model, self.tokens.tokens(), context)?)
    }

    fn check(
        &self,
        model: &Decoder,
        context: &StepContext<'_>,
        tolerance: f64,
    ) -> Result<Vec<Finding>, Failure> {
        let first = self.tokens.first_batch()?.with_tolerance(tolerance)?;
        let tokens = self.tokens.tokens();
        let losses = |values| {
            let batch = (self.batch)(&self.tokens, values)?;
            Ok(self.objective.forward(batch).losses())
        };
        let findings = Y::check(first.clone(), model, tokens, context, losses)?;
        let mut findings: Vec<Finding> = findings.iter().cloned().collect();
        if let Some(packing) = context.batching.packing {
            let sequences = tokens.sequences.clone();
            let packed = PackedBatch::new(sequences, packing, &context.batching.device)?;
            let of_packed = first.check_packed(
                &packed,
                |tokens| tokens.log_probs(&forked(model), Decoder::hidden),
                |packed| packed.log_probs(&forked(model), Decoder::hidden_packed),
            )?;
            findings.extend(of_packed.iter().cloned());
        }
        Ok(findings)
    }
}
