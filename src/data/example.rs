use std::collections::HashMap;
use std::sync::Arc;

use super::json::Object;
use super::label::{
    Demonstration, Desirable, Group, Preference, PromptOnly, Sample, Scores, fits_f32,
};
use crate::batch::GroupedReward;
use crate::error::InvalidInput;
use crate::tokens::Sequence;

/// A prompt, its completions and what is known of them: `T` is [`Text`](crate::data::Text) or `Vec<u32>`, token ids.
#[derive(Debug, Clone, PartialEq)]
pub struct Example<T, L> {
    /// The prompt that is completed.
    pub prompt: T,
    /// Two for [`Preference`], one for [`Desirable`], [`Demonstration`] and [`Sample`], as many as
    /// scores or rewards for [`Scores`] and [`Group`], none for [`PromptOnly`].
    completions: Vec<T>,
    /// Marks of the token ids of each completion that count; `None` where all do. Empty: all do.
    counted: Vec<Option<Vec<bool>>>,
    /// The judgement of the completions.
    pub label: L,
    /// The columns of the row that its format has no use for: `tools`, a group to split by, a
    /// margin.
    pub columns: Arc<Object>,
    /// The line of the file, from 1, if it comes from one.
    pub line: Option<usize>,
}

impl<T> Example<T, Preference> {
    /// A pair: a chosen and a rejected completion.
    pub fn pair(prompt: T, chosen: T, rejected: T) -> Self {
        Self::new(prompt, vec![chosen, rejected], Preference)
    }

    /// The preferred completion.
    pub fn chosen(&self) -> &T {
        &self.completions[0]
    }

    /// The completion that was not preferred.
    pub fn rejected(&self) -> &T {
        &self.completions[1]
    }
}

impl<T> Example<T, Desirable> {
    /// An unpaired completion, desirable or undesirable.
    pub fn unpaired(prompt: T, completion: T, desirable: bool) -> Self {
        Self::new(prompt, vec![completion], Desirable(desirable))
    }

    /// The completion of the prompt.
    pub fn completion(&self) -> &T {
        &self.completions[0]
    }
}

impl<T> Example<T, Demonstration> {
    /// A demonstration: a completion that the policy imitates.
    pub fn demonstration(prompt: T, completion: T) -> Self {
        Self::new(prompt, vec![completion], Demonstration)
    }

    /// The completion of the prompt.
    pub fn completion(&self) -> &T {
        &self.completions[0]
    }
}

impl Example<Vec<u32>, Sample> {
    /// A sample: a completion that a model drew, ln μ of each of its tokens, and its reward.
    ///
    /// # Errors
    ///
    /// There is not one log-probability per token, or one is not a number that f32 holds, or is above
    /// 0.
    pub fn sample(
        prompt: Vec<u32>,
        completion: Vec<u32>,
        log_probs: Vec<f64>,
        reward: GroupedReward,
    ) -> Result<Self, InvalidInput> {
        if completion.len() != log_probs.len() {
            let expected = format!("{}, one per token", completion.len());
            return Err(InvalidInput::new("log_probs", expected, log_probs.len()));
        }
        let is_one = |value: &&f64| fits_f32(**value) && **value <= 0.0;
        if let Some(value) = log_probs.iter().find(|value| !is_one(value)) {
            let expected = "numbers that f32 holds, and ≤ 0";
            return Err(InvalidInput::new("log_probs", expected, value));
        }
        let label = Sample { reward, log_probs };
        Ok(Self::new(prompt, vec![completion], label))
    }
}

impl<T> Example<T, Group> {
    /// Makes a sample of each completion of some groups, with the token ids that were drawn. The
    /// rewards are compared with those of all the groups that are given together. Groups with the same
    /// `prompt_ids` are one.
    ///
    /// ```
    /// use burn_preference::data::{Example, Format, Json, SampleFormat};
    ///
    /// let row = r#"{"prompt": "2+2=", "responses": ["4", "5"], "scores": [1.0, 0.0],
    ///     "prompt_ids": [50, 43, 50, 61], "response_ids": [[52, 0], [53, 0]],
    ///     "response_log_probs": [[-0.7, -0.1], [-1.6, -0.2]]}"#;
    /// let Json::Object(row) = serde_json::from_str(row)? else { unreachable!() };
    /// let group = SampleFormat::default().parse(row)?;
    /// let samples = Example::samples(&[group])?;
    /// assert_eq!(samples[1].sequences()[0].ids(), [50, 43, 50, 61, 53, 0]);
    /// assert_eq!(samples[1].label.reward.deviation(), -0.5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`GroupedReward::of_groups`] and [`Example::sample`], and a group has not one reward and one
    /// list of log-probabilities per completion.
    pub fn samples(groups: &[Self]) -> Result<Vec<Example<Vec<u32>, Sample>>, InvalidInput> {
        for Self { label, .. } in groups {
            let completions = label.ids.len();
            for (name, found) in [
                ("rewards", label.rewards.len()),
                ("log_probs", label.log_probs.len()),
            ] {
                if found != completions {
                    let expected = format!("{completions}, one per completion");
                    return Err(InvalidInput::new(name, expected, found));
                }
            }
        }
        let mut known = HashMap::new();
        let places = groups.iter().flat_map(|Self { label, .. }| {
            let next = known.len();
            let place = *known.entry(&label.prompt_ids).or_insert(next);
            label.rewards.iter().map(move |_| place)
        });
        let rewards: Vec<f64> = groups
            .iter()
            .flat_map(|group| group.label.rewards.clone())
            .collect();
        let rewards = GroupedReward::of_groups(&rewards, &places.collect::<Vec<_>>())?;
        let drawn = groups.iter().flat_map(|group| {
            let drawn = group.label.ids.iter().zip(&group.label.log_probs);
            drawn.map(move |drawn| (group, drawn))
        });
        let sample = |((group, (ids, log_probs)), reward): ((&Self, _), GroupedReward)| {
            let (ids, log_probs): (&Vec<u32>, &Vec<f64>) = (ids, log_probs);
            let prompt = group.label.prompt_ids.clone();
            let mut sample = Example::sample(prompt, ids.clone(), log_probs.clone(), reward)?;
            (sample.columns, sample.line) = (Arc::clone(&group.columns), group.line);
            Ok(sample)
        };
        drawn.zip(rewards).map(sample).collect()
    }
}

impl<T> Example<T, Scores> {
    /// A ranked list: completions with a score each, higher is better.
    ///
    /// # Errors
    ///
    /// There is no completion, not one score for each, or a score that is beyond f32, which devices
    /// compute in.
    pub fn ranked(prompt: T, completions: Vec<T>, scores: Vec<f64>) -> Result<Self, InvalidInput> {
        if completions.is_empty() {
            return Err(InvalidInput::new("completions", "one at least", "none"));
        }
        if completions.len() != scores.len() {
            let expected = format!("{}, one per completion", completions.len());
            return Err(InvalidInput::new("scores", expected, scores.len()));
        }
        if let Some(score) = scores.iter().find(|score| !fits_f32(**score)) {
            return Err(InvalidInput::new("scores", "numbers that f32 holds", score));
        }
        Ok(Self::new(prompt, completions, Scores(scores)))
    }
}

impl<T> Example<T, PromptOnly> {
    /// A prompt that has no completion yet.
    pub fn prompt_only(prompt: T) -> Self {
        Self::new(prompt, Vec::new(), PromptOnly)
    }
}

impl<T, L> Example<T, L> {
    /// An example with as many completions as its label says.
    pub(super) fn new(prompt: T, completions: Vec<T>, label: L) -> Self {
        Self {
            prompt,
            completions,
            counted: Vec::new(),
            label,
            columns: Arc::default(),
            line: None,
        }
    }

    /// All completions: chosen before rejected, lists in the order of the file.
    pub fn completions(&self) -> &[T] {
        &self.completions
    }

    /// The same example with these columns, such as `tools`.
    pub fn with_columns(self, columns: Object) -> Self {
        Self {
            columns: Arc::new(columns),
            ..self
        }
    }

    /// The same example with another label; the completions stay.
    pub(super) fn relabel<M>(self, label: impl FnOnce(L) -> M) -> Example<T, M> {
        Example {
            prompt: self.prompt,
            completions: self.completions,
            counted: self.counted,
            label: label(self.label),
            columns: self.columns,
            line: self.line,
        }
    }

    /// An example of some of the completions, with another label.
    pub(super) fn some<M>(&self, places: &[usize], label: M) -> Example<T, M>
    where
        T: Clone,
    {
        let counted = |place: &usize| self.counted.get(*place).cloned().flatten();
        Example {
            prompt: self.prompt.clone(),
            completions: places
                .iter()
                .map(|&i| self.completions[i].clone())
                .collect(),
            counted: places.iter().map(counted).collect(),
            label,
            columns: Arc::clone(&self.columns),
            line: self.line,
        }
    }
}

impl<L> Example<Vec<u32>, L> {
    /// The same example as ids, with as many completions as before.
    pub(super) fn from_sequences<T>(texts: Example<T, L>, sequences: &[Sequence]) -> Self {
        debug_assert_eq!(sequences.len(), texts.completions.len());
        let ids = |s: &Sequence| s.completion().to_vec();
        Self {
            // Labels of completions have one at least.
            prompt: sequences
                .first()
                .map_or(Vec::new(), |s| s.prompt().to_vec()),
            completions: sequences.iter().map(ids).collect(),
            counted: sequences
                .iter()
                .map(|s| s.counted().map(<[bool]>::to_vec))
                .collect(),
            label: texts.label,
            columns: texts.columns,
            line: texts.line,
        }
    }

    /// Counts only the marked tokens of each completion.
    ///
    /// # Errors
    ///
    /// There is not one list of marks per completion, or not one mark per token.
    pub fn with_counted(self, counted: &[Vec<bool>]) -> Result<Self, InvalidInput> {
        if counted.len() != self.completions.len() {
            let expected = format!("{} lists, one per completion", self.completions.len());
            return Err(InvalidInput::new("counted", expected, counted.len()));
        }
        let sequences = self.sequences().into_iter().zip(counted);
        let marks = |(sequence, counted): (Sequence, &Vec<bool>)| {
            let sequence = sequence.with_counted(counted)?;
            Ok(sequence.counted().map(<[bool]>::to_vec))
        };
        let counted = sequences.map(marks).collect::<Result<_, InvalidInput>>()?;
        Ok(Self { counted, ..self })
    }

    /// The prompt with each completion, and which of its tokens count.
    #[allow(
        clippy::missing_panics_doc,
        reason = "marks are checked where they are set"
    )]
    pub fn sequences(&self) -> Vec<Sequence> {
        let sequence = |(place, completion): (usize, &Vec<u32>)| {
            let sequence = Sequence::new(&self.prompt, completion);
            match self.counted.get(place) {
                Some(Some(counted)) => sequence
                    .with_counted(counted)
                    .expect("checked where it was set; completions do not change"),
                _ => sequence,
            }
        };
        self.completions.iter().enumerate().map(sequence).collect()
    }
}
