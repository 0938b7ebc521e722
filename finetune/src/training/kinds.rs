//! The objectives of each kind of examples as tasks.

use burn::tensor::Tensor;
use burn_preference::config::{PairObjective, RankedObjective, UnpairedObjective};
use burn_preference::data::{
    Desirable, Example, PairTokens, Preference, RankedTokens, Scores, UnpairedTokens,
    WithMismatched,
};
use burn_preference::tokens::Sequence;
use burn_preference::training::state::{KlEstimate, RunningMean};
use burn_preference::{
    BradleyTerryLoss, Frozen, KtoLoss, Metrics, Ranked, RelativeLogProbs, RewardRankingLoss,
    SequenceLogProbs, WithBaseline, WithShift,
};
use serde_json::{Value, json};

use super::batching::Batching;
use super::part::{Part, part};
use super::task::Task;
use super::values::StepContext;
use crate::data::Examples;
use crate::failure::Failure;
use crate::model::Decoder;

impl Task for PairObjective {
    type Label = Preference;

    fn part(
        &self,
        examples: Examples<Preference>,
        batching: &Batching,
    ) -> Result<Box<dyn Part + '_>, Failure> {
        let tokens: PairTokens = batching.collate(examples);
        Ok(match self {
            Self::Referenced(objective) => {
                part(tokens, objective, PairTokens::pair::<RelativeLogProbs>)
            }
            Self::ReferenceFree(objective) => {
                part(tokens, objective, PairTokens::pair::<SequenceLogProbs>)
            }
        })
    }
}

impl Task for RankedObjective {
    type Label = Scores;

    fn part(
        &self,
        examples: Examples<Scores>,
        batching: &Batching,
    ) -> Result<Box<dyn Part + '_>, Failure> {
        let tokens: RankedTokens = batching.collate(examples);
        Ok(match self {
            Self::Referenced(objective) => {
                part(tokens, objective, RankedTokens::ranked::<RelativeLogProbs>)
            }
            Self::ReferenceFree(objective) => {
                part(tokens, objective, RankedTokens::ranked::<SequenceLogProbs>)
            }
        })
    }
}

impl Task for BradleyTerryLoss {
    type Label = Preference;

    fn part(
        &self,
        examples: Examples<Preference>,
        batching: &Batching,
    ) -> Result<Box<dyn Part + '_>, Failure> {
        let tokens: PairTokens = batching.collate(examples);
        Ok(part(tokens, self, PairTokens::pair::<Tensor<1>>))
    }
}

impl Task for RewardRankingLoss {
    type Label = Scores;

    fn part(
        &self,
        examples: Examples<Scores>,
        batching: &Batching,
    ) -> Result<Box<dyn Part + '_>, Failure> {
        let tokens: RankedTokens = batching.collate(examples);
        Ok(part(
            tokens,
            self,
            |tokens: &RankedTokens, rewards: Tensor<1>| {
                let (scores, present) = (tokens.scores.clone(), tokens.present.clone());
                Ranked::new(rewards.reshape(present.dims()), scores, present)
            },
        ))
    }
}

/// KTO, with its z₀ from mismatched completions.
pub struct Kto {
    objective: KtoLoss,
    /// z₀ of the step at hand, over all of its parts.
    baseline: Option<Tensor<1>>,
}

impl Kto {
    /// The task before the first step.
    pub fn new(objective: KtoLoss) -> Self {
        Self {
            objective,
            baseline: None,
        }
    }
}

impl Task for Kto {
    type Label = WithMismatched;

    fn sequences(example: &Example<Vec<u32>, WithMismatched>) -> Vec<Sequence> {
        let mut sequences = example.sequences();
        sequences.push(example.label.sequence.clone());
        sequences
    }

    fn begin(
        &mut self,
        model: &Decoder,
        parts: &[Examples<WithMismatched>],
        context: &StepContext<'_>,
    ) -> Result<(), Failure> {
        let frozen = Frozen::new(model);
        let mut all: Option<KlEstimate> = None;
        for examples in parts {
            let tokens: UnpairedTokens<WithMismatched> = context.batching.collate(examples.clone());
            let relative = context.relative(frozen.model(), tokens.mismatched())?;
            let estimate = KlEstimate::from_mismatched(&relative);
            all = Some(match all {
                Some(all) => all.merge(estimate),
                None => estimate,
            });
        }
        self.baseline = all.map(|all| all.baseline());
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

/// Another objective over unpaired completions.
pub struct Unpaired {
    /// The objective.
    pub objective: UnpairedObjective,
    /// BCO's δ.
    pub rewards: RunningMean,
}

impl Task for Unpaired {
    type Label = Desirable;

    fn part(
        &self,
        examples: Examples<Desirable>,
        batching: &Batching,
    ) -> Result<Box<dyn Part + '_>, Failure> {
        let tokens: UnpairedTokens = batching.collate(examples);
        Ok(match &self.objective {
            UnpairedObjective::ApoZero(objective) => part(
                tokens,
                objective,
                UnpairedTokens::unpaired::<RelativeLogProbs>,
            ),
            UnpairedObjective::Bco(objective) => {
                let shift = self.rewards.tensor(&batching.device);
                let batch = move |tokens: &UnpairedTokens, relative: RelativeLogProbs| {
                    WithShift::new(tokens.unpaired(relative)?, shift.clone())
                };
                part(tokens, objective, batch)
            }
            UnpairedObjective::Npo(objective) => {
                part(tokens, objective, |_: &_, relative: RelativeLogProbs| {
                    Ok(relative)
                })
            }
            UnpairedObjective::Simnpo(objective) => {
                part(tokens, objective, |_: &_, log_probs: SequenceLogProbs| {
                    Ok(log_probs)
                })
            }
            other => return Err(format!("{other:?} is not known here").into()),
        })
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
