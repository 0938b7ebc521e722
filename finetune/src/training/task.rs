//! Objectives by name or config, and one step of each kind: from examples to a loss.

use burn::data::dataloader::BatchStrategy;
use burn::data::dataloader::batcher::Batcher;
use burn::tensor::{Device, Tensor};
use burn_preference::config::{
    PairObjective, PairObjectiveConfig, RankedObjective, RankedObjectiveConfig, RewardObjective,
    RewardObjectiveConfig, UnpairedObjective, UnpairedObjectiveConfig,
};
use burn_preference::data::{
    Collator, Desirable, Example, PairTokens, Preference, RankedTokens, Scores, TokenBudget,
    UnpairedTokens, WithMismatched,
};
use burn_preference::reference::cache::ReferenceCache;
use burn_preference::tokens::{PackedBatch, Packing, Padding, Sequence, TokenBatch};
use burn_preference::training::metrics::Observe;
use burn_preference::training::state::RunningMean;
use burn_preference::{
    BatchMetrics, Frozen, KlEstimate, KtoLoss, LossOutput, Metrics, Objective as _, Ranked,
    RelativeLogProbs, RewardPair, SequenceLogProbs, WithBaseline, WithShift,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::chat::Failure;
use crate::data::Examples;
use crate::decoder::Decoder;

/// An objective, by the kind of rows that it learns from.
#[derive(Debug, Clone)]
pub enum Objective {
    /// Chosen and rejected.
    Pairs(PairObjective),
    /// Thumbs.
    Thumbs(UnpairedObjective),
    /// Lists with scores.
    Lists(RankedObjective),
    /// Pairs or lists, for a reward model.
    Rewards(RewardObjective),
}

impl Objective {
    /// By its name, such as `dpo`, or the JSON of its config: `{"loss": "ipo", "tau": 0.5}`. Some
    /// names are of two objectives (`bco`, `apo_zero`): rows with thumbs decide.
    ///
    /// # Errors
    ///
    /// No objective over pairs, thumbs or lists has this name, or a value of its config is wrong.
    pub fn parse(text: &str, thumbs: bool) -> Result<Self, Failure> {
        let config: Value = match text.trim_start().starts_with('{') {
            true => serde_json::from_str(text)?,
            false => json!({ "loss": text.trim() }),
        };
        let mut known = Vec::new();
        let unpaired = read::<UnpairedObjectiveConfig>(&config, "thumbs", &mut known)?;
        if let Some(config) = unpaired.as_ref().filter(|_| thumbs) {
            return Ok(Self::Thumbs(config.try_init()?));
        }
        if let Some(config) = read::<PairObjectiveConfig>(&config, "pairs", &mut known)? {
            return Ok(Self::Pairs(config.try_init()?));
        }
        if let Some(config) = unpaired {
            return Ok(Self::Thumbs(config.try_init()?));
        }
        if let Some(config) = read::<RankedObjectiveConfig>(&config, "lists", &mut known)? {
            return Ok(Self::Lists(config.try_init()?));
        }
        if let Some(config) = read::<RewardObjectiveConfig>(&config, "rewards", &mut known)? {
            return Ok(Self::Rewards(config.try_init()?));
        }
        let known = known.join("; ");
        Err(format!("no file, and no objective that can be chosen here; there are {known}").into())
    }

    /// Whether an example's loss depends on what else is in its forward, so that the parts of a
    /// step do not add up to it: NLLs per token, and sorted log-ratios.
    pub fn needs_whole_steps(&self) -> bool {
        fn of(config: &Value) -> bool {
            let is = |key: &str, name: &str| config[key] == name;
            let below = |inner: Option<&Value>| inner.is_some_and(of);
            let parts = config["parts"].as_array().map(Vec::as_slice);
            is("loss", "aot")
                || is("nll_normalization", "token")
                || is("normalization", "token")
                || below(config.get("objective"))
                || parts.unwrap_or_default().iter().any(of)
        }
        match self {
            Self::Pairs(objective) => of(&json!(objective.config())),
            Self::Thumbs(_) | Self::Lists(_) | Self::Rewards(_) => false,
        }
    }

    /// Whether it compares with a reference.
    pub fn needs_reference(&self) -> bool {
        match self {
            Self::Pairs(objective) => matches!(objective, PairObjective::Referenced(_)),
            Self::Thumbs(objective) => !matches!(objective, UnpairedObjective::Simnpo(_)),
            Self::Lists(objective) => matches!(objective, RankedObjective::Referenced(_)),
            Self::Rewards(_) => false,
        }
    }

    /// Whether it is a reward model's.
    pub fn learns_rewards(&self) -> bool {
        matches!(self, Self::Rewards(_))
    }
}

/// A config of one kind; none if its name is of another, and then the names of this kind in `known`.
fn read<C: DeserializeOwned>(
    config: &Value,
    kind: &str,
    known: &mut Vec<String>,
) -> Result<Option<C>, Failure> {
    match serde_json::from_value(config.clone()) {
        Ok(config) => Ok(Some(config)),
        Err(error) => {
            // The name of this objective, not of something in its config.
            let name = config["loss"].as_str().unwrap_or_default();
            let text = error.to_string();
            let others = text.strip_prefix(&format!("unknown variant `{name}`, expected one of "));
            known.push(format!("{kind}: {}", others.ok_or(error)?));
            Ok(None)
        }
    }
}

/// How sequences become rows of a device.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The token that fills rows.
    pub padding: Padding,
    /// Each prompt once; otherwise a row per completion.
    pub packing: Option<Packing>,
    /// Tokens of a forward, at most, padding included.
    pub budget: usize,
    /// Where.
    pub device: Device,
}

impl Layout {
    /// Rows on the device, as the batch of their label has them.
    fn batch<L, B>(&self, examples: Examples<L>) -> B
    where
        Collator: Batcher<Example<Vec<u32>, L>, B>,
    {
        Collator::new(self.padding).batch(examples, &self.device)
    }

    /// A row on the device for each sequence.
    ///
    /// # Errors
    ///
    /// As [`TokenBatch::new`].
    pub fn rows(&self, sequences: Vec<Sequence>) -> Result<TokenBatch, Failure> {
        Ok(TokenBatch::new(sequences, self.padding, &self.device)?)
    }

    /// Log-probabilities of completions, in their order, by hidden states and the head.
    ///
    /// # Errors
    ///
    /// As [`TokenBatch::log_probs`] and [`PackedBatch::new`].
    pub fn log_probs(
        &self,
        model: &Decoder,
        rows: &TokenBatch,
    ) -> Result<SequenceLogProbs, Failure> {
        Ok(if let Some(packing) = self.packing {
            let packed = PackedBatch::new(rows.sequences.clone(), packing, &self.device)?;
            packed.log_probs(model, Decoder::hidden_packed)?
        } else {
            rows.log_probs(model, Decoder::hidden)?
        })
    }

    /// Parts of a step that fit on the device.
    pub fn parts<L>(&self, examples: Examples<L>) -> Vec<Examples<L>>
    where
        TokenBudget<L>: BatchStrategy<Example<Vec<u32>, L>>,
    {
        let mut budget = match self.packing {
            Some(packing) => TokenBudget::packed(self.budget, packing),
            None => TokenBudget::padded(self.budget, self.padding),
        };
        let mut parts = Vec::new();
        for example in examples {
            budget.add(example);
            parts.extend(budget.batch(false));
        }
        while let Some(part) = budget.batch(true) {
            parts.push(part);
        }
        parts
    }
}

/// What log-probabilities are compared with.
pub enum Reference {
    /// Those of the start, computed before training.
    Cached(ReferenceCache),
    /// The start itself, which computes them in every step.
    Live(Box<Frozen<Decoder>>),
    /// Nothing.
    None,
}

impl Reference {
    fn log_probs(&self, layout: &Layout, rows: &TokenBatch) -> Result<SequenceLogProbs, Failure> {
        match self {
            Self::Cached(cache) => Ok(cache.log_probs(&rows.sequences, &layout.device)?),
            Self::Live(model) => layout.log_probs(model.model(), rows),
            Self::None => Err("an objective with a reference, and none was made".into()),
        }
    }
}

/// What a step is computed with.
pub struct Around<'a> {
    /// How rows are laid out.
    pub layout: &'a Layout,
    /// What is compared with.
    pub reference: &'a Reference,
}

impl Around<'_> {
    fn policy(&self, model: &Decoder, rows: &TokenBatch) -> Result<SequenceLogProbs, Failure> {
        self.layout.log_probs(model, rows)
    }

    /// log π/π°.
    fn relative(&self, model: &Decoder, rows: &TokenBatch) -> Result<RelativeLogProbs, Failure> {
        let theirs = self.reference.log_probs(self.layout, rows)?;
        Ok(self.policy(model, rows)?.relative_to(theirs)?)
    }
}

/// The losses of some examples, summed, and what to log of them.
pub struct Step {
    /// To be divided by the examples of the whole step.
    pub sum: Tensor<1>,
    /// Not read yet.
    pub metrics: BatchMetrics,
}

impl Step {
    fn new<B: Observe>(batch: &B, output: &LossOutput<B::Rewards>) -> Self {
        Self {
            sum: output.sum(),
            metrics: BatchMetrics::observe(batch, output),
        }
    }
}

/// An objective with the kind of rows that it learns from.
pub trait Task: Sync {
    /// What a row is labelled with.
    type Label: Clone + Send + Sync + 'static;

    /// Every sequence of a row whose log-probability is asked for.
    fn sequences(example: &Example<Vec<u32>, Self::Label>) -> Vec<Sequence> {
        example.sequences()
    }

    /// Takes note of what the parts of a step have in common, before the first of them.
    ///
    /// # Errors
    ///
    /// As [`step`](Self::step).
    fn begin(
        &mut self,
        _: &Decoder,
        _: &[Examples<Self::Label>],
        _: &Around<'_>,
    ) -> Result<(), Failure> {
        Ok(())
    }

    /// One forward.
    ///
    /// # Errors
    ///
    /// What the layout, the reference or a batch refuses.
    fn step(
        &self,
        model: &Decoder,
        examples: Examples<Self::Label>,
        around: &Around<'_>,
    ) -> Result<Step, Failure>;

    /// Takes note of what a whole step has shown.
    fn observe(&mut self, _: &Metrics) {}

    /// What it took note of so far, for a run that goes on later.
    fn state(&self) -> Value {
        Value::Null
    }

    /// Goes on from such a state.
    ///
    /// # Errors
    ///
    /// It is of another task.
    fn restore(&mut self, _: Value) -> Result<(), Failure> {
        Ok(())
    }
}

/// An objective over pairs.
pub struct Pairs(pub PairObjective);

impl Task for Pairs {
    type Label = Preference;

    fn step(
        &self,
        model: &Decoder,
        examples: Examples<Preference>,
        around: &Around<'_>,
    ) -> Result<Step, Failure> {
        let batch: PairTokens = around.layout.batch(examples);
        Ok(match &self.0 {
            PairObjective::Referenced(objective) => {
                let pair = batch.pair(around.relative(model, &batch.rows)?)?;
                Step::new(&pair, &objective.forward(pair.clone()))
            }
            PairObjective::ReferenceFree(objective) => {
                let pair = batch.pair(around.policy(model, &batch.rows)?)?;
                Step::new(&pair, &objective.forward(pair.clone()))
            }
        })
    }
}

/// KTO, with its z₀ from mismatched completions.
pub struct Kto {
    objective: KtoLoss,
    /// Of the step at hand, over all of its parts.
    baseline: Option<Tensor<1>>,
}

impl Kto {
    /// Before the first step.
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
        around: &Around<'_>,
    ) -> Result<(), Failure> {
        let frozen = Frozen::new(model);
        let mut all: Option<KlEstimate> = None;
        for part in parts {
            let batch: UnpairedTokens<WithMismatched> = around.layout.batch(part.clone());
            let relative = around.relative(frozen.model(), batch.mismatched())?;
            let part = KlEstimate::from_mismatched(&relative);
            all = Some(match all {
                Some(all) => all.merge(part),
                None => part,
            });
        }
        self.baseline = all.map(|all| all.baseline());
        Ok(())
    }

    fn step(
        &self,
        model: &Decoder,
        examples: Examples<WithMismatched>,
        around: &Around<'_>,
    ) -> Result<Step, Failure> {
        let baseline = self.baseline.clone().ok_or("a step that has not begun")?;
        let batch: UnpairedTokens<WithMismatched> = around.layout.batch(examples);
        let thumbs = batch.unpaired(around.relative(model, &batch.rows)?)?;
        let thumbs = WithBaseline::new(thumbs, baseline)?;
        Ok(Step::new(&thumbs, &self.objective.forward(thumbs.clone())))
    }
}

/// Another objective over thumbs.
pub struct Thumbs {
    /// Which.
    pub objective: UnpairedObjective,
    /// BCO's δ.
    pub rewards: RunningMean,
}

impl Task for Thumbs {
    type Label = Desirable;

    fn step(
        &self,
        model: &Decoder,
        examples: Examples<Desirable>,
        around: &Around<'_>,
    ) -> Result<Step, Failure> {
        let batch: UnpairedTokens = around.layout.batch(examples);
        let rows = &batch.rows;
        if let UnpairedObjective::Simnpo(objective) = &self.objective {
            let log_probs = around.policy(model, rows)?;
            return Ok(Step::new(&log_probs, &objective.forward(log_probs.clone())));
        }
        let relative = around.relative(model, rows)?;
        if let UnpairedObjective::Npo(objective) = &self.objective {
            return Ok(Step::new(&relative, &objective.forward(relative.clone())));
        }
        let thumbs = batch.unpaired(relative)?;
        Ok(match &self.objective {
            UnpairedObjective::Bco(objective) => {
                let thumbs = WithShift::new(thumbs, self.rewards.tensor(&around.layout.device))?;
                Step::new(&thumbs, &objective.forward(thumbs.clone()))
            }
            UnpairedObjective::ApoZero(objective) => {
                Step::new(&thumbs, &objective.forward(thumbs.clone()))
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

/// An objective over lists.
pub struct Lists(pub RankedObjective);

impl Task for Lists {
    type Label = Scores;

    fn step(
        &self,
        model: &Decoder,
        examples: Examples<Scores>,
        around: &Around<'_>,
    ) -> Result<Step, Failure> {
        let batch: RankedTokens = around.layout.batch(examples);
        let rows = &batch.rows;
        Ok(match &self.0 {
            RankedObjective::Referenced(objective) => {
                let lists = batch.ranked(around.relative(model, rows)?)?;
                Step::new(&lists, &objective.forward(lists.clone()))
            }
            RankedObjective::ReferenceFree(objective) => {
                let lists = batch.ranked(around.policy(model, rows)?)?;
                Step::new(&lists, &objective.forward(lists.clone()))
            }
        })
    }
}

/// A reward model from pairs.
pub struct RewardPairs(pub burn_preference::BradleyTerryLoss);

impl Task for RewardPairs {
    type Label = Preference;

    fn step(
        &self,
        model: &Decoder,
        examples: Examples<Preference>,
        around: &Around<'_>,
    ) -> Result<Step, Failure> {
        let batch: PairTokens = around.layout.batch(examples);
        let pair: RewardPair = batch.pair(rewards(model, &batch.rows)?)?;
        Ok(Step::new(&pair, &self.0.forward(pair.clone())))
    }
}

/// A reward model from lists.
pub struct RewardLists(pub burn_preference::RewardRankingLoss);

impl Task for RewardLists {
    type Label = Scores;

    fn step(
        &self,
        model: &Decoder,
        examples: Examples<Scores>,
        around: &Around<'_>,
    ) -> Result<Step, Failure> {
        let lists = examples.len();
        let batch: RankedTokens = around.layout.batch(examples);
        let rewards = rewards(model, &batch.rows)?.reshape([lists, batch.candidates]);
        let lists = Ranked::new(rewards, batch.scores, batch.present)?;
        Ok(Step::new(&lists, &self.0.forward(lists.clone())))
    }
}

/// What a reward model says at the end of each sequence.
///
/// # Errors
///
/// A sequence is empty.
pub fn rewards(model: &Decoder, rows: &TokenBatch) -> Result<Tensor<1>, Failure> {
    Ok(rows.at_end(model.rewards(rows.ids.clone()))?)
}
