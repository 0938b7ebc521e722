//! Objectives of all kinds as tasks: those whose batch is made of tokens and values alone, and three
//! that have a statistic besides.

use burn::data::dataloader::batcher::Batcher;
use burn::tensor::Tensor;
use burn_preference::batch::{Batch, SampleLogProbs};
use burn_preference::config::{BuildError, Configured, ObjectiveConfig};
use burn_preference::data::{
    Collator, DemonstrationTokens, Desirable, Example, RankedTokens, Sample, SampleTokens,
    UnpairedTokens, WithMismatched,
};
use burn_preference::tokens::Sequence;
use burn_preference::training::metrics::Observe;
use burn_preference::training::state::{KlEstimate, RunningMean};
use burn_preference::{
    Demonstrations, Frozen, InvalidInput, Metrics, Objective, Ranked, RelativeLogProbs,
    RelativeTokenLogProbs, Samples, TokenWeighting, Unpaired, WithBaseline, WithShift,
    WithStepTokens,
};
use serde_json::{Value, json};

use super::batching::Batching;
use super::part::{CollatedTokens, Part, part};
use super::task::Task;
use super::values::{AgainstReference, CompletionValues, StepContext};
use crate::data::Examples;
use crate::failure::Failure;
use crate::model::Decoder;
use crate::say;

/// An objective whose batch `B` is made of the tokens `T` and a model's values `Y` of them.
pub struct Plain<T, Y, B: Observe> {
    objective: Configured<B>,
    batch: fn(&T, Y) -> Result<B, InvalidInput>,
}

impl<T, Y, B: Observe + 'static> Plain<T, Y, B> {
    /// Builds the objective over `B`.
    ///
    /// # Errors
    ///
    /// As [`ObjectiveConfig::build`].
    pub fn new(
        config: &ObjectiveConfig,
        batch: fn(&T, Y) -> Result<B, InvalidInput>,
    ) -> Result<Self, BuildError> {
        Ok(Self {
            objective: config.build()?,
            batch,
        })
    }
}

impl<T, Y, B> Task for Plain<T, Y, B>
where
    T: CollatedTokens,
    Y: CompletionValues + 'static,
    B: Observe + Clone + 'static,
    Collator: Batcher<Example<Vec<u32>, T::Label>, T>,
{
    type Label = T::Label;

    fn whole_batch(&self) -> bool {
        self.objective.whole_batch()
    }

    fn part(
        &self,
        examples: Examples<T::Label>,
        batching: &Batching,
    ) -> Result<Box<dyn Part + '_>, Failure> {
        let tokens: T = batching.collate(examples);
        Ok(part(tokens, &self.objective, self.batch))
    }
}

/// The values of completions alone: the batch of an objective that unlearns.
///
/// # Errors
///
/// None.
pub fn completions<Y>(_: &UnpairedTokens, values: Y) -> Result<Y, InvalidInput> {
    Ok(values)
}

/// The lists of rewards, one of each row.
///
/// # Errors
///
/// There is not one reward per row.
pub fn reward_lists(
    tokens: &RankedTokens,
    rewards: Tensor<1>,
) -> Result<Ranked<Tensor<2>>, InvalidInput> {
    let (scores, present) = (tokens.scores.clone(), tokens.present.clone());
    Ranked::new(rewards.reshape(present.dims()), scores, present)
}

/// An objective with a z₀ from mismatched completions: KTO.
pub struct WithKlEstimate {
    objective: Configured<WithBaseline<Unpaired<RelativeLogProbs>>>,
    /// z₀ of the step at hand, over all of its parts.
    baseline: Option<Tensor<1>>,
}

impl WithKlEstimate {
    /// Builds the objective.
    ///
    /// # Errors
    ///
    /// As [`ObjectiveConfig::build`].
    pub fn new(config: &ObjectiveConfig) -> Result<Self, BuildError> {
        Ok(Self {
            objective: config.build()?,
            baseline: None,
        })
    }
}

impl Task for WithKlEstimate {
    type Label = WithMismatched;

    fn sequences(example: &Example<Vec<u32>, WithMismatched>) -> Vec<Sequence> {
        let mut sequences = example.sequences();
        sequences.push(example.label.sequence.clone());
        sequences
    }

    fn whole_batch(&self) -> bool {
        self.objective.whole_batch()
    }

    fn begin(
        &mut self,
        model: &Decoder,
        parts: &[Examples<WithMismatched>],
        context: &StepContext<'_>,
    ) -> Result<(), Failure> {
        let frozen = Frozen::new(model);
        let mut all = KlEstimate::of_nothing(&context.batching.device);
        for examples in parts {
            let tokens: UnpairedTokens<WithMismatched> = context.batching.collate(examples.clone());
            let relative = context.relative(frozen.model(), tokens.mismatched())?;
            all = all.merge(KlEstimate::from_mismatched(&relative));
        }
        self.baseline = Some(all.reduced(context.ranks.reducer())?.baseline());
        Ok(())
    }

    fn part(
        &self,
        examples: Examples<WithMismatched>,
        batching: &Batching,
    ) -> Result<Box<dyn Part + '_>, Failure> {
        let baseline = self.baseline.clone().ok_or("a step that has not begun")?;
        let tokens: UnpairedTokens<WithMismatched> = batching.collate(examples);
        let batch = move |tokens: &UnpairedTokens<_>, relative: RelativeLogProbs| {
            WithBaseline::new(tokens.unpaired(relative)?, baseline.clone())
        };
        Ok(part(tokens, &self.objective, batch))
    }
}

/// An objective with the tokens that count in a step: SFT, and pairs with an NLL per token. Its batch
/// `B` is made of the tokens `T` and a model's values `Y` of them.
pub struct WithTokenCount<T, Y, B: Observe> {
    objective: Configured<WithStepTokens<B>>,
    batch: fn(&T, Y) -> Result<B, InvalidInput>,
    step: StepTokens,
}

impl<T, Y, B: Observe + 'static> WithTokenCount<T, Y, B> {
    /// Builds the objective over `B` with the column.
    ///
    /// # Errors
    ///
    /// As [`ObjectiveConfig::build`].
    pub fn new(
        config: &ObjectiveConfig,
        batch: fn(&T, Y) -> Result<B, InvalidInput>,
    ) -> Result<Self, BuildError> {
        Ok(Self {
            objective: config.build()?,
            batch,
            step: StepTokens::default(),
        })
    }
}

impl<T, Y, B> Task for WithTokenCount<T, Y, B>
where
    T: CollatedTokens,
    Y: CompletionValues + 'static,
    B: Observe + Clone + 'static,
    Collator: Batcher<Example<Vec<u32>, T::Label>, T>,
{
    type Label = T::Label;

    fn whole_batch(&self) -> bool {
        self.objective.whole_batch()
    }

    fn measured_by(&self) -> Option<&'static str> {
        Some(match self.objective.config() {
            ObjectiveConfig::Sft(sft) if sft.token_weighting != TokenWeighting::Uniform => "nll",
            _ => "loss",
        })
    }

    fn begin(
        &mut self,
        _: &Decoder,
        parts: &[Examples<T::Label>],
        context: &StepContext<'_>,
    ) -> Result<(), Failure> {
        self.step = StepTokens::of(parts, context)?;
        Ok(())
    }

    fn part(
        &self,
        examples: Examples<T::Label>,
        batching: &Batching,
    ) -> Result<Box<dyn Part + '_>, Failure> {
        let tokens: T = batching.collate(examples);
        Ok(part(tokens, &self.objective, self.step.beside(self.batch)?))
    }
}

/// The values of demonstrations, which are their batch.
///
/// # Errors
///
/// None.
pub fn demonstrations(
    _: &DemonstrationTokens,
    values: Demonstrations,
) -> Result<Demonstrations, InvalidInput> {
    Ok(values)
}

/// The column of the step at hand, over all of its parts and processes: tokens that count, and
/// examples. There is none before a step has begun.
#[derive(Default)]
struct StepTokens(Option<[f64; 2]>);

impl StepTokens {
    /// The tokens whose mean it is are those of the first completion of each example: of a pair the
    /// chosen one; demonstrations and samples have one.
    fn of<L>(parts: &[Examples<L>], context: &StepContext<'_>) -> Result<Self, Failure> {
        let (mut counted, mut compared, mut examples) = (0, 0, 0);
        for example in parts.iter().flatten() {
            let sequences = example.sequences();
            let mut lengths = sequences.iter().map(Sequence::length);
            let first = lengths.next().unwrap_or(0);
            counted += first;
            compared += first + lengths.sum::<usize>();
            examples += 1;
        }
        let total = |count| context.ranks.total(count);
        let [counted, examples] = [total(counted)?, total(examples)?];
        // All processes see the same 0, so that all of them ask once more.
        if counted == 0.0 && total(compared)? == 0.0 {
            let what = "no token counts: nothing of them is the assistant's";
            return Err(format!("{examples} examples of which {what}").into());
        }
        // Where all chosen completions are empty, there is nothing to divide.
        Ok(Self(Some([counted.max(1.0), examples])))
    }

    /// Puts the column beside what `batch` makes of tokens and values.
    fn beside<T, Y, B: Batch>(
        &self,
        batch: fn(&T, Y) -> Result<B, InvalidInput>,
    ) -> Result<impl Fn(&T, Y) -> Result<WithStepTokens<B>, InvalidInput> + use<T, Y, B>, Failure>
    {
        let [counted, examples] = self.0.ok_or("a step that has not begun")?;
        Ok(move |tokens: &T, values| {
            let column = WithStepTokens::new(batch(tokens, values)?, counted, examples);
            Ok(column.expect("a step has tokens, and the examples of its parts"))
        })
    }
}

/// An objective of samples with the tokens of a step: GRPO. `Y` are a model's values of them.
pub struct OnSamples<Y, L: SampleLogProbs> {
    task: WithTokenCount<SampleTokens, Y, Samples<L>>,
    /// True before the first step, in which the policy is its sampler.
    is_first: bool,
}

/// The largest mean of |ln π/μ| in the first step, nats: number types round otherwise, bf16 by some
/// 1e-2. The mean ratio tells nothing: its expectation is 1 for any policy.
const OFF: f64 = 0.05;

impl<Y, L: SampleLogProbs + 'static> OnSamples<Y, L> {
    /// Builds the objective.
    ///
    /// # Errors
    ///
    /// As [`ObjectiveConfig::build`].
    pub fn new(
        config: &ObjectiveConfig,
        batch: fn(&SampleTokens, Y) -> Result<Samples<L>, InvalidInput>,
    ) -> Result<Self, BuildError> {
        Ok(Self {
            task: WithTokenCount::new(config, batch)?,
            is_first: true,
        })
    }
}

/// The samples with the policy's log-probabilities alone.
///
/// # Errors
///
/// As [`SampleTokens::samples`].
pub fn samples(tokens: &SampleTokens, policy: Demonstrations) -> Result<Samples, InvalidInput> {
    let samples = tokens.samples(policy.tokens().clone())?;
    match policy.statistics() {
        Some(statistics) => samples.with_statistics(statistics.clone()),
        None => Ok(samples),
    }
}

/// The same against a reference.
///
/// # Errors
///
/// As [`SampleTokens::samples`].
pub fn samples_against(
    tokens: &SampleTokens,
    values: AgainstReference,
) -> Result<Samples<RelativeTokenLogProbs>, InvalidInput> {
    samples(tokens, values.policy)?.relative_to(values.reference)
}

impl<Y, L> Task for OnSamples<Y, L>
where
    Y: CompletionValues + 'static,
    L: SampleLogProbs + Clone + 'static,
{
    type Label = Sample;

    fn whole_batch(&self) -> bool {
        self.task.whole_batch()
    }

    /// A loss on old samples rises while new ones get better: only their rewards would tell.
    fn measured_by(&self) -> Option<&'static str> {
        None
    }

    fn begin(
        &mut self,
        model: &Decoder,
        parts: &[Examples<Sample>],
        context: &StepContext<'_>,
    ) -> Result<(), Failure> {
        self.task.begin(model, parts, context)
    }

    fn part(
        &self,
        examples: Examples<Sample>,
        batching: &Batching,
    ) -> Result<Box<dyn Part + '_>, Failure> {
        self.task.part(examples, batching)
    }

    fn observe(&mut self, metrics: &Metrics) {
        let key = "sampling/sampling_logp_difference/mean";
        let off = metrics.get(key).unwrap_or(f64::NAN);
        if self.is_first && (off.is_nan() || off > OFF) {
            say!(
                "look: |ln π/μ| is {off:.3} on average in the first step, and not 0: is --model the \
                 one that wrote these answers, without --quantize?"
            );
        }
        self.is_first = false;
    }

    /// A run that goes on has moved already.
    fn restore(&mut self, _: Value) -> Result<(), Failure> {
        self.is_first = false;
        Ok(())
    }
}

/// An objective with a δ, the mean of all rewards so far: BCO.
pub struct WithRewardShift {
    objective: Configured<WithShift<Unpaired<RelativeLogProbs>>>,
    rewards: RunningMean,
}

impl WithRewardShift {
    /// Builds the objective.
    ///
    /// # Errors
    ///
    /// As [`ObjectiveConfig::build`].
    pub fn new(config: &ObjectiveConfig) -> Result<Self, BuildError> {
        Ok(Self {
            objective: config.build()?,
            rewards: RunningMean::default(),
        })
    }
}

impl Task for WithRewardShift {
    type Label = Desirable;

    fn whole_batch(&self) -> bool {
        self.objective.whole_batch()
    }

    fn part(
        &self,
        examples: Examples<Desirable>,
        batching: &Batching,
    ) -> Result<Box<dyn Part + '_>, Failure> {
        let tokens: UnpairedTokens = batching.collate(examples);
        let shift = self.rewards.tensor(&batching.device);
        let batch = move |tokens: &UnpairedTokens, relative: RelativeLogProbs| {
            WithShift::new(tokens.unpaired(relative)?, shift.clone())
        };
        Ok(part(tokens, &self.objective, batch))
    }

    fn observe(&mut self, metrics: &Metrics) {
        self.rewards.observe_rewards(metrics);
    }

    fn state(&self) -> Value {
        json!(self.rewards)
    }

    fn restore(&mut self, state: Value) -> Result<(), Failure> {
        self.rewards = serde_json::from_value(state)?;
        Ok(())
    }
}
