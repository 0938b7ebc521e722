use std::fmt;

use crate::error::InvalidInput;
use crate::tokens::Sequence;

/// The way to shorten an example whose prompt and completion are together longer than `max_length`.
///
/// All completions of an example keep the same prompt. An example that would lose a whole
/// completion (or all of its tokens that count) or its whole prompt is dropped, and reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Truncation {
    /// Nothing is cut: the example is dropped.
    Drop {
        /// The most tokens of prompt and completion together.
        max_length: usize,
    },
    /// The prompt loses its beginning, completions nothing.
    PromptEnd {
        /// The most tokens of prompt and completion together.
        max_length: usize,
    },
    /// Completions lose their end (and with it the end of sequence), the prompt nothing.
    CompletionStart {
        /// The most tokens of prompt and completion together.
        max_length: usize,
    },
    /// The prompt keeps its last `max_prompt` tokens, also where prompt and completion would fit;
    /// then completions lose their end.
    PromptEndThenCompletionStart {
        /// The most tokens of a prompt.
        max_prompt: usize,
        /// The most tokens of prompt and completion together.
        max_length: usize,
    },
}

/// The reason why an example is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// A completion has no tokens at all.
    EmptyCompletion,
    /// The prompt has no tokens: nothing predicts the first token of the completion.
    EmptyPrompt,
    /// The ids of the prompt alone and those of prompt and completion begin differently: a
    /// tokenizer that was asked for both and encoded the completion alone, for instance, or whose
    /// first token reaches into the completion.
    NoCommonPrompt,
    /// No token of a completion counts: none of its messages is of the role `assistant`.
    NothingCounts,
    /// It is longer than `max_length`, and the policy is to drop it.
    TooLong,
    /// Truncation would leave nothing of a completion that counts.
    LosesCompletion,
    /// Truncation would leave nothing of the prompt.
    LosesPrompt,
    /// It cannot be read or tokenized, and [`OnError::Skip`](super::OnError::Skip) passes over it.
    Error(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EmptyCompletion => "an empty completion",
            Self::EmptyPrompt => "an empty prompt",
            Self::NoCommonPrompt => {
                "the ids of the prompt are not the beginning of those of prompt and completion"
            }
            Self::NothingCounts => {
                "no token of a completion counts: no message of the assistant, or a mask that marks none"
            }
            Self::TooLong => "too long",
            Self::LosesCompletion => "nothing that counts would be left of a completion",
            Self::LosesPrompt => "nothing of the prompt would be left",
            Self::Error(error) => error,
        })
    }
}

/// The parts that were cut.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cut {
    pub prompt: bool,
    pub completions: usize,
}

impl Truncation {
    /// That something could be left of an example.
    pub(super) fn check(self) -> Result<(), InvalidInput> {
        let (max_prompt, max_length) = match self {
            Self::Drop { max_length }
            | Self::PromptEnd { max_length }
            | Self::CompletionStart { max_length } => (None, max_length),
            Self::PromptEndThenCompletionStart {
                max_prompt,
                max_length,
            } => (Some(max_prompt), max_length),
        };
        if max_prompt == Some(0) {
            return Err(InvalidInput::new("max_prompt", "1 at least", 0));
        }
        if max_length < 2 {
            let expected = "2 at least: a token of the prompt and one of the completion";
            return Err(InvalidInput::new("max_length", expected, max_length));
        }
        Ok(())
    }

    /// Shortens the sequences of an example, which have the same prompt.
    pub(super) fn apply(self, sequences: &[Sequence]) -> Result<(Vec<Sequence>, Cut), Reason> {
        let prompt = sequences.first().map_or(0, |s| s.prompt().len());
        if prompt == 0 {
            return Err(Reason::EmptyPrompt);
        }
        if sequences.iter().any(|s| s.completion().is_empty()) {
            return Err(Reason::EmptyCompletion);
        }
        if sequences.iter().any(|s| s.length() == 0) {
            return Err(Reason::NothingCounts);
        }
        let completion = |s: &Sequence| s.completion().len();
        let longest = sequences.iter().map(completion).max().unwrap_or(0);
        let (max_prompt, max_length) = match self {
            Self::Drop { max_length } if prompt + longest > max_length => {
                return Err(Reason::TooLong);
            }
            Self::PromptEnd { max_length } => (max_length.saturating_sub(longest), max_length),
            Self::PromptEndThenCompletionStart {
                max_prompt,
                max_length,
            } => (max_prompt, max_length),
            Self::Drop { max_length } | Self::CompletionStart { max_length } => {
                (prompt, max_length)
            }
        };
        let kept = prompt.min(max_prompt);
        if kept == 0 {
            return Err(Reason::LosesPrompt);
        }
        let room = max_length.saturating_sub(kept);
        let cut = Cut {
            prompt: kept < prompt,
            completions: sequences.iter().filter(|s| completion(s) > room).count(),
        };
        let shortened: Vec<_> = sequences.iter().map(|s| shorten(s, kept, room)).collect();
        if shortened.iter().any(|s| s.length() == 0) {
            return Err(Reason::LosesCompletion);
        }
        Ok((shortened, cut))
    }
}

/// The last `prompt` tokens of the prompt and the first `completion` ones of the completion.
fn shorten(sequence: &Sequence, prompt: usize, completion: usize) -> Sequence {
    let whole = sequence.prompt();
    let end = sequence.completion().len().min(completion);
    let shorter = Sequence::new(
        &whole[whole.len().saturating_sub(prompt)..],
        &sequence.completion()[..end],
    );
    let shorter = match sequence.counted() {
        None => shorter,
        Some(counted) => shorter
            .with_counted(&counted[..end])
            .expect("one mark per token, on both sides of the cut"),
    };
    match sequence.context() {
        None => shorter,
        Some(context) => shorter.with_context(*context),
    }
}
