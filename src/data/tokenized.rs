use std::error::Error;
use std::fmt;

use burn::data::dataset::{Dataset, DatasetError};

use super::error::{DataError, of_line};
use super::example::{Example, Text};

/// What a tokenizer is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Encode<'a> {
    /// The ids of a prompt, with all that stands before a completion: the beginning of sequence,
    /// the template's opening of the assistant's turn.
    Prompt(&'a Text),
    /// The ids of a completion, with the end of sequence.
    Completion {
        /// The prompt that it follows.
        prompt: &'a Text,
        /// The completion.
        completion: &'a Text,
    },
}

impl<'a> Encode<'a> {
    /// The text that is to be encoded, prompt or completion.
    pub fn text(self) -> &'a Text {
        match self {
            Self::Prompt(text)
            | Self::Completion {
                completion: text, ..
            } => text,
        }
    }
}

/// What happens to a row whose prompt and completion are together longer than `max_length`.
///
/// All completions of a row keep the same prompt. A row that would lose a whole completion or its
/// whole prompt is dropped, and reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Truncation {
    /// Nothing is cut: the row is dropped.
    Drop {
        /// Tokens of prompt and completion, at most.
        max_length: usize,
    },
    /// The prompt loses its beginning, completions nothing.
    PromptEnd {
        /// Tokens of prompt and completion, at most.
        max_length: usize,
    },
    /// Completions lose their end (and with it the end of sequence), the prompt nothing.
    CompletionStart {
        /// Tokens of prompt and completion, at most.
        max_length: usize,
    },
    /// The prompt keeps its last `max_prompt` tokens, then completions lose their end.
    PromptEndThenCompletionStart {
        /// Tokens of the prompt, at most.
        max_prompt: usize,
        /// Tokens of prompt and completion, at most.
        max_length: usize,
    },
}

/// Why a row is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// A completion has no tokens at all.
    EmptyCompletion,
    /// The prompt has no tokens: nothing predicts the first token of the completion.
    EmptyPrompt,
    /// It is longer than `max_length`, and the policy is to drop it.
    TooLong,
    /// Truncation would leave nothing of a completion.
    LosesCompletion,
    /// Truncation would leave nothing of the prompt.
    LosesPrompt,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EmptyCompletion => "an empty completion",
            Self::EmptyPrompt => "an empty prompt",
            Self::TooLong => "too long",
            Self::LosesCompletion => "nothing of a completion would be left",
            Self::LosesPrompt => "nothing of the prompt would be left",
        })
    }
}

/// What was cut.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cut {
    prompt: bool,
    completions: usize,
}

impl Truncation {
    /// Shortens a prompt and its completions.
    pub(super) fn apply(
        self,
        prompt: &mut Vec<u32>,
        completions: &mut [Vec<u32>],
    ) -> Result<Cut, Reason> {
        if prompt.is_empty() {
            return Err(Reason::EmptyPrompt);
        }
        if completions.iter().any(Vec::is_empty) {
            return Err(Reason::EmptyCompletion);
        }
        let longest = completions.iter().map(Vec::len).max().unwrap_or(0);
        let mut cut = Cut::default();
        let mut keep_end = |prompt: &mut Vec<u32>, room: usize| {
            cut.prompt = prompt.len() > room;
            prompt.drain(..prompt.len().saturating_sub(room));
        };
        let max_length = match self {
            Self::Drop { max_length } if prompt.len() + longest > max_length => {
                return Err(Reason::TooLong);
            }
            Self::PromptEnd { max_length } => {
                let room = max_length.saturating_sub(longest);
                if room == 0 {
                    return Err(Reason::LosesPrompt);
                }
                keep_end(prompt, room);
                max_length
            }
            Self::PromptEndThenCompletionStart {
                max_prompt,
                max_length,
            } => {
                if max_prompt == 0 {
                    return Err(Reason::LosesPrompt);
                }
                keep_end(prompt, max_prompt);
                max_length
            }
            Self::Drop { max_length } | Self::CompletionStart { max_length } => max_length,
        };
        let room = max_length.saturating_sub(prompt.len());
        if room == 0 {
            return Err(Reason::LosesCompletion);
        }
        for completion in completions {
            cut.completions += usize::from(completion.len() > room);
            completion.truncate(room);
        }
        Ok(cut)
    }
}

/// A row that was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dropped {
    /// Its index in the dataset of texts.
    pub index: usize,
    /// Its line in the file, if it comes from one.
    pub line: Option<usize>,
    /// Why.
    pub reason: Reason,
}

/// Numbers of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Lengths {
    /// The fewest.
    pub min: usize,
    /// The most.
    pub max: usize,
    /// All together.
    pub sum: usize,
    /// Of how many sequences.
    pub count: usize,
}

impl Lengths {
    fn add(&mut self, length: usize) {
        self.min = if self.count == 0 {
            length
        } else {
            self.min.min(length)
        };
        self.max = self.max.max(length);
        self.sum += length;
        self.count += 1;
    }

    /// The mean; 0 of none.
    pub fn mean(&self) -> f64 {
        self.sum as f64 / self.count.max(1) as f64
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}, mean {:.1}", self.min, self.max, self.mean())
    }
}

/// What a dataset holds once it is tokenized and truncated. `Display` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Report {
    /// Rows that are kept.
    pub kept: usize,
    /// Rows that are not, in order.
    pub dropped: Vec<Dropped>,
    /// Kept prompts that lost their beginning.
    pub shortened_prompts: usize,
    /// Kept completions that lost their end.
    pub shortened_completions: usize,
    /// Tokens of the kept prompts.
    pub prompts: Lengths,
    /// Tokens of the kept completions, by position in their row: chosen and rejected of pairs. Of
    /// lists, all share the first.
    pub completions: Vec<Lengths>,
    /// Desirable and undesirable rows, of thumbs.
    pub classes: Option<(usize, usize)>,
    /// Kept pairs whose completions are the same tokens: they teach nothing.
    pub identical_pairs: usize,
    /// Kept lists whose scores are all the same: they order nothing.
    pub tied_lists: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "rows: {} kept, {} dropped",
            self.kept,
            self.dropped.len()
        )?;
        for Dropped {
            index,
            line,
            reason,
        } in &self.dropped
        {
            writeln!(f, "  row {index}{}: {reason}", of_line(*line))?;
        }
        writeln!(
            f,
            "shortened: {} prompts, {} completions",
            self.shortened_prompts, self.shortened_completions
        )?;
        writeln!(f, "tokens of prompts: {}", self.prompts)?;
        for (place, lengths) in self.completions.iter().enumerate() {
            writeln!(f, "tokens of completions [{place}]: {lengths}")?;
        }
        if let Some((desirable, undesirable)) = self.classes {
            writeln!(f, "desirable: {desirable}, undesirable: {undesirable}")?;
        }
        if self.identical_pairs > 0 {
            writeln!(f, "identical pairs: {}", self.identical_pairs)?;
        }
        if self.tied_lists > 0 {
            writeln!(f, "lists without an order: {}", self.tied_lists)?;
        }
        Ok(())
    }
}

/// A label of this crate: [`Preference`](super::Preference), [`Desirable`](super::Desirable) or
/// [`Scores`](super::Scores). It is sealed.
pub trait Labels: sealed::Labels + Clone + fmt::Debug + Send + Sync + 'static {}

impl<L: sealed::Labels + Clone + fmt::Debug + Send + Sync + 'static> Labels for L {}

mod sealed {
    use super::Report;

    pub trait Labels {
        /// What a row adds to a report.
        fn report(&self, completions: &[Vec<u32>], report: &mut Report);
    }
}

impl sealed::Labels for super::Preference {
    fn report(&self, completions: &[Vec<u32>], report: &mut Report) {
        report.identical_pairs += usize::from(completions[0] == completions[1]);
        per_place(completions, report);
    }
}

impl sealed::Labels for super::Desirable {
    fn report(&self, completions: &[Vec<u32>], report: &mut Report) {
        let (desirable, undesirable) = report.classes.get_or_insert((0, 0));
        *if self.0 { desirable } else { undesirable } += 1;
        per_place(completions, report);
    }
}

impl sealed::Labels for super::Scores {
    fn report(&self, completions: &[Vec<u32>], report: &mut Report) {
        report.tied_lists += usize::from(self.0.iter().all(|score| *score == self.0[0]));
        report.completions.resize(1, Lengths::default());
        for completion in completions {
            report.completions[0].add(completion.len());
        }
    }
}

fn per_place(completions: &[Vec<u32>], report: &mut Report) {
    report
        .completions
        .resize(completions.len(), Lengths::default());
    for (lengths, completion) in report.completions.iter_mut().zip(completions) {
        lengths.add(completion.len());
    }
}

/// A dataset of texts as a dataset of token ids: those rows that survive truncation.
///
/// The tokenizer is yours: a closure that turns a [`Encode`] into ids. It runs once over all rows
/// for the [`Report`], and again whenever a row is asked for; wrap the dataset into Burn's
/// `InMemDataset` to keep the ids instead.
pub struct Tokenized<D, T> {
    texts: D,
    tokenizer: T,
    truncation: Truncation,
    kept: Vec<usize>,
    report: Report,
}

impl<D, T> Tokenized<D, T> {
    /// Tokenizes every row once.
    ///
    /// # Errors
    ///
    /// A row cannot be read, or the tokenizer refuses it. Rows that are only too long are dropped,
    /// as the [`Report`] says.
    pub fn new<L, E>(texts: D, tokenizer: T, truncation: Truncation) -> Result<Self, DataError>
    where
        D: Dataset<Example<Text, L>>,
        T: Fn(Encode<'_>) -> Result<Vec<u32>, E> + Send + Sync,
        E: Into<Box<dyn Error + Send + Sync>>,
        L: Labels,
    {
        let mut tokenized = Self {
            kept: Vec::new(),
            report: Report::default(),
            texts,
            tokenizer,
            truncation,
        };
        for index in 0..tokenized.texts.len() {
            let example = tokenized.texts.get(index)?;
            let line = example.line;
            match tokenized.encode(index, example)? {
                Ok((example, cut)) => {
                    tokenized.kept.push(index);
                    let report = &mut tokenized.report;
                    report.kept += 1;
                    report.shortened_prompts += usize::from(cut.prompt);
                    report.shortened_completions += cut.completions;
                    report.prompts.add(example.prompt.len());
                    example.label.report(example.completions(), report);
                }
                Err(reason) => tokenized.report.dropped.push(Dropped {
                    index,
                    line,
                    reason,
                }),
            }
        }
        Ok(tokenized)
    }

    /// What is kept, what is not, and why.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The dataset of texts.
    pub fn texts(&self) -> &D {
        &self.texts
    }

    /// For each row of this dataset, its index in the dataset of texts.
    pub fn kept(&self) -> &[usize] {
        &self.kept
    }

    fn encode<L, E>(
        &self,
        index: usize,
        example: Example<Text, L>,
    ) -> Result<Result<(Example<Vec<u32>, L>, Cut), Reason>, DataError>
    where
        T: Fn(Encode<'_>) -> Result<Vec<u32>, E>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let line = example.line;
        let ids = |part: Encode<'_>| {
            (self.tokenizer)(part).map_err(|source| DataError::Tokenizer {
                index,
                line,
                source: source.into(),
            })
        };
        let prompt = &example.prompt;
        let mut prompt_ids = ids(Encode::Prompt(prompt))?;
        let mut completions = example
            .completions()
            .iter()
            .map(|completion| ids(Encode::Completion { prompt, completion }))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(self
            .truncation
            .apply(&mut prompt_ids, &mut completions)
            .map(|cut| (example.with_contents(prompt_ids, completions), cut)))
    }
}

impl<D, T, L, E> Dataset<Example<Vec<u32>, L>> for Tokenized<D, T>
where
    D: Dataset<Example<Text, L>>,
    T: Fn(Encode<'_>) -> Result<Vec<u32>, E> + Send + Sync,
    E: Into<Box<dyn Error + Send + Sync>>,
    L: Labels,
{
    fn get(&self, index: usize) -> Result<Example<Vec<u32>, L>, DatasetError> {
        let row = self.kept[index];
        let example = self.texts.get(row)?;
        match self.encode(row, example).map_err(DatasetError::new)? {
            Ok((example, _)) => Ok(example),
            Err(reason) => Err(DatasetError::new(DataError::Tokenizer {
                index: row,
                line: None,
                source: format!("it gave other ids before: now {reason}").into(),
            })),
        }
    }

    fn len(&self) -> usize {
        self.kept.len()
    }
}
