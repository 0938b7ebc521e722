//! Values that a model gives completions: log-probabilities, log-ratios or rewards.

use burn::module::Module as _;
use burn::tensor::{Int, Tensor};
use burn_preference::tokens::{Sequence, TokenBatch, TokenTensors};
use burn_preference::training::first_batch::{Findings, FirstBatch};
use burn_preference::{Demonstrations, RelativeLogProbs, SequenceLogProbs, TokenLogProbs};

use super::batching::Batching;
use super::reference::ReferenceLogProbs;
use crate::failure::Failure;
use crate::model::Decoder;
use crate::ranks::Ranks;

/// Everything that turns the tokens of a step into values, besides the policy.
pub struct StepContext<'a> {
    /// Batches of the policy and the reference.
    pub batching: &'a Batching,
    /// The reference, for an objective that has one.
    pub reference: Option<&'a ReferenceLogProbs>,
    /// The processes that share a step.
    pub ranks: &'a Ranks,
}

impl StepContext<'_> {
    fn reference(&self) -> Result<&ReferenceLogProbs, Failure> {
        let missing = "an objective with a reference, and none was made";
        Ok(self.reference.ok_or(missing)?)
    }

    /// log π/π° of each completion.
    pub(super) fn relative(
        &self,
        model: &Decoder,
        tokens: &TokenBatch,
    ) -> Result<RelativeLogProbs, Failure> {
        let reference = self.reference()?.log_probs(tokens, self.batching)?;
        Ok(self
            .batching
            .log_probs(model, tokens)?
            .relative_to(reference)?)
    }
}

/// Values of the completions of a batch, one of each, from a model.
pub trait CompletionValues: Sized {
    /// Computes the values of `tokens`.
    ///
    /// # Errors
    ///
    /// The batching or the reference refuses the tokens.
    fn compute(
        model: &Decoder,
        tokens: &TokenBatch,
        context: &StepContext<'_>,
    ) -> Result<Self, Failure>;

    /// Computes the values of tokens of any number, by as many forwards as the budget asks for. By
    /// default it is one: for values that are never of a whole step at once.
    ///
    /// For a model without autodiff: of another one, each forward would keep its graph.
    ///
    /// # Errors
    ///
    /// As [`compute`](Self::compute).
    fn measure(
        model: &Decoder,
        tokens: &TokenBatch,
        context: &StepContext<'_>,
    ) -> Result<Self, Failure> {
        Self::compute(model, tokens, context)
    }

    /// Checks a first batch with the model, and with `losses` of the values where they tell more. By
    /// default the log-probabilities of the model are all that is checked.
    ///
    /// # Errors
    ///
    /// As [`compute`](Self::compute), and as `losses`.
    fn check(
        first: FirstBatch,
        model: &Decoder,
        _tokens: &TokenBatch,
        _context: &StepContext<'_>,
        _losses: impl FnMut(Self) -> Result<Tensor<1>, Failure>,
    ) -> Result<Findings, Failure> {
        first
            .with_vocab(model.config().vocab)
            .with_parameters_of(model)
            .check_policy(|tokens| hidden(&forked(model), tokens))
    }
}

/// Computes the values of tokens by as many forwards as the budget asks for. `join` makes one batch of
/// several, in the order of the rows that it is given: places among all of them.
fn by_forwards<Y: CompletionValues>(
    model: &Decoder,
    tokens: &TokenBatch,
    context: &StepContext<'_>,
    join: impl Fn(&[Y], Tensor<1, Int>, &TokenBatch) -> Result<Y, Failure>,
) -> Result<Y, Failure> {
    let forwards = context.batching.forwards(&tokens.sequences);
    if forwards.len() < 2 {
        return Y::compute(model, tokens, context);
    }
    let values = forwards.iter().map(|places| {
        let sequences = places.iter().map(|&i| tokens.sequences[i].clone());
        let tokens = context.batching.tokens(sequences.collect())?;
        Y::compute(model, &tokens, context)
    });
    let values = values.collect::<Result<Vec<_>, Failure>>()?;
    let mut rows = vec![0_i64; tokens.len()];
    for (row, place) in (0..).zip(forwards.concat()) {
        rows[place] = row;
    }
    let rows = Tensor::from_data(rows.as_slice(), &context.batching.device);
    join(&values, rows, tokens)
}

fn join_log_probs(
    batches: &[SequenceLogProbs],
    rows: Tensor<1, Int>,
    tokens: &TokenBatch,
) -> Result<SequenceLogProbs, Failure> {
    let sums = batches.iter().map(SequenceLogProbs::sum).collect();
    let lengths: Vec<usize> = tokens.sequences.iter().map(Sequence::length).collect();
    let sums = Tensor::cat(sums, 0).select(0, rows);
    Ok(SequenceLogProbs::new(sums, &lengths)?)
}

fn hidden(model: &Decoder, tokens: &TokenTensors) -> Result<SequenceLogProbs, Failure> {
    Ok(tokens.log_probs(model, Decoder::hidden)?)
}

impl CompletionValues for SequenceLogProbs {
    fn compute(
        model: &Decoder,
        tokens: &TokenBatch,
        context: &StepContext<'_>,
    ) -> Result<Self, Failure> {
        context.batching.log_probs(model, tokens)
    }

    fn measure(
        model: &Decoder,
        tokens: &TokenBatch,
        context: &StepContext<'_>,
    ) -> Result<Self, Failure> {
        by_forwards(model, tokens, context, join_log_probs)
    }
}

/// Every token by itself, with its statistics. They are never of a whole step at once: the tokens of
/// the step are a number beside them.
impl CompletionValues for Demonstrations {
    fn compute(
        model: &Decoder,
        tokens: &TokenBatch,
        context: &StepContext<'_>,
    ) -> Result<Self, Failure> {
        context.batching.demonstrations(model, tokens)
    }
}

/// The tokens of completions by themselves, with the reference's log-probabilities of them.
pub struct AgainstReference {
    /// Log-probabilities of the policy, with the statistics of the same pass.
    pub policy: Demonstrations,
    /// Log-probabilities of the reference.
    pub reference: TokenLogProbs,
}

impl CompletionValues for AgainstReference {
    fn compute(
        model: &Decoder,
        tokens: &TokenBatch,
        context: &StepContext<'_>,
    ) -> Result<Self, Failure> {
        let reference = context.reference()?;
        Ok(Self {
            reference: reference.token_log_probs(tokens, context.batching)?,
            policy: context.batching.demonstrations(model, tokens)?,
        })
    }
}

impl CompletionValues for RelativeLogProbs {
    fn compute(
        model: &Decoder,
        tokens: &TokenBatch,
        context: &StepContext<'_>,
    ) -> Result<Self, Failure> {
        context.relative(model, tokens)
    }

    fn measure(
        model: &Decoder,
        tokens: &TokenBatch,
        context: &StepContext<'_>,
    ) -> Result<Self, Failure> {
        by_forwards(model, tokens, context, |batches: &[Self], rows, tokens| {
            let side = |of: fn(&Self) -> &SequenceLogProbs| {
                let batches: Vec<_> = batches.iter().map(|batch| of(batch).clone()).collect();
                join_log_probs(&batches, rows.clone(), tokens)
            };
            Ok(side(Self::policy)?.relative_to(side(Self::reference)?)?)
        })
    }

    fn check(
        first: FirstBatch,
        model: &Decoder,
        tokens: &TokenBatch,
        context: &StepContext<'_>,
        losses: impl FnMut(Self) -> Result<Tensor<1>, Failure>,
    ) -> Result<Findings, Failure> {
        let reference = context.reference()?;
        let first = first.with_parameters_of(model);
        first.with_vocab(model.config().vocab).check_against(
            |tokens| hidden(&forked(model), tokens),
            |rows| match reference {
                ReferenceLogProbs::Cached(cache) => {
                    Ok(cache.log_probs(&tokens.sequences, &context.batching.device)?)
                }
                ReferenceLogProbs::Live(frozen) => hidden(frozen.model(), rows),
            },
            losses,
        )
    }
}

/// Rewards of a reward model.
impl CompletionValues for Tensor<1> {
    fn compute(model: &Decoder, tokens: &TokenBatch, _: &StepContext<'_>) -> Result<Self, Failure> {
        rewards(model, tokens)
    }

    fn measure(
        model: &Decoder,
        tokens: &TokenBatch,
        context: &StepContext<'_>,
    ) -> Result<Self, Failure> {
        by_forwards(model, tokens, context, |batches: &[Self], rows, _| {
            Ok(Self::cat(batches.to_vec(), 0).select(0, rows))
        })
    }

    /// By the body's hidden states: nothing trained the head above them, so that its
    /// log-probabilities are not compared with chance.
    fn check(
        first: FirstBatch,
        model: &Decoder,
        _: &TokenBatch,
        _: &StepContext<'_>,
        _: impl FnMut(Self) -> Result<Tensor<1>, Failure>,
    ) -> Result<Findings, Failure> {
        first
            .with_parameters_of(model)
            .check_policy(|tokens| hidden(&forked(model), tokens))
    }
}

/// The same model with parameters of its own, whose graph goes with it.
pub(super) fn forked(model: &Decoder) -> Decoder {
    model.clone().fork(&model.embedding.weight.device())
}

/// The rewards that a reward model gives at the end of each sequence.
///
/// # Errors
///
/// A sequence is empty.
pub fn rewards(model: &Decoder, tokens: &TokenBatch) -> Result<Tensor<1>, Failure> {
    Ok(tokens.at_end(model.rewards(tokens.ids.clone()))?)
}
