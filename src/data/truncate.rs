use std::fmt;

use crate::error::InvalidInput;
use crate::tokens::Sequence;

/// The way to shorten an example whose prompt and completion are together longer than `max_length`.
/// One that fits is never cut.
///
/// All completions of an example keep the same prompt. An example that would lose a whole
/// completion (or all of its tokens that count) or its whole prompt is dropped, and reported.
///
/// A prompt that is cut loses its **middle**: its last tokens stay, and so does its *opening*, what
/// stands before the first word of the first message that is no system message: the beginning of
/// sequence, the tools, the system message, the opening of the turn. Of a string the opening is what
/// the tokenizer puts before every text. If nothing that is said would be left, the example is
/// dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Truncation {
    /// Nothing is cut: the example is dropped.
    Drop {
        /// The most tokens of prompt and completion together.
        max_length: usize,
    },
    /// The prompt loses its middle, completions nothing.
    PromptMiddle {
        /// The most tokens of prompt and completion together.
        max_length: usize,
    },
    /// Completions lose their end (and with it the end of sequence), the prompt nothing.
    CompletionStart {
        /// The most tokens of prompt and completion together.
        max_length: usize,
    },
    /// The prompt loses its middle, down to `min_prompt` tokens; if that is not enough, completions
    /// lose their end.
    PromptMiddleThenCompletionStart {
        /// The tokens that a longer prompt keeps at least, less than `max_length`.
        min_prompt: usize,
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
    /// Truncation would leave nothing of what the prompt says: its frame at most, the opening and
    /// what stands behind every prompt.
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
            Self::LosesPrompt => "nothing of what the prompt says would be left",
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

/// The tokens that a prompt begins and ends with whatever it says.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Frame {
    /// The tokens before the first word of the first message that is no system message.
    pub opening: usize,
    /// The tokens behind the last word: the end of its turn, the opening of the answer.
    pub closing: usize,
}

impl Frame {
    /// The frame that two prompts have in common.
    pub(super) fn of(prompt: &[u32], other: &[u32]) -> Self {
        let same = |(a, b): &(&u32, &u32)| a == b;
        let opening = prompt.iter().zip(other).take_while(same).count();
        let [rest, other] = [prompt, other].map(|ids| ids[opening..].iter().rev());
        Self {
            opening,
            closing: rest.zip(other).take_while(same).count(),
        }
    }

    /// The frame of the prompt without its last tokens, which belong to the completions.
    pub(super) fn without_end(self, tokens: usize) -> Self {
        Self {
            opening: self.opening,
            closing: self.closing.saturating_sub(tokens),
        }
    }
}

/// The tokens of an example that are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// The tokens of the prompt: all of them, or fewer.
    pub prompt: usize,
    /// The most tokens of a completion.
    completion: usize,
}

impl Truncation {
    /// That something could be left of an example.
    pub(super) fn check(self) -> Result<(), InvalidInput> {
        let (min_prompt, max_length) = match self {
            Self::Drop { max_length }
            | Self::PromptMiddle { max_length }
            | Self::CompletionStart { max_length } => (None, max_length),
            Self::PromptMiddleThenCompletionStart {
                min_prompt,
                max_length,
            } => (Some(min_prompt), max_length),
        };
        if max_length < 2 {
            let expected = "2 at least: a token of the prompt and one of the completion";
            return Err(InvalidInput::new("max_length", expected, max_length));
        }
        match min_prompt {
            Some(min_prompt) if !(1..max_length).contains(&min_prompt) => {
                let expected = format!("1 at least, and less than {max_length}, the most of all");
                Err(InvalidInput::new("min_prompt", expected, min_prompt))
            }
            _ => Ok(()),
        }
    }

    /// The tokens that an example keeps, whose sequences have the same prompt.
    pub(super) fn room(self, sequences: &[Sequence]) -> Result<Room, Reason> {
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
        let completions = sequences.iter().map(|s| s.completion().len());
        let longest = completions.max().unwrap_or(0);
        let (max_length, kept) = match self {
            Self::Drop { max_length } if prompt + longest > max_length => {
                return Err(Reason::TooLong);
            }
            Self::Drop { max_length } | Self::CompletionStart { max_length } => {
                (max_length, prompt)
            }
            Self::PromptMiddle { max_length } => (max_length, max_length.saturating_sub(longest)),
            Self::PromptMiddleThenCompletionStart {
                min_prompt,
                max_length,
            } => {
                let beside = max_length.saturating_sub(longest);
                (max_length, beside.max(min_prompt))
            }
        };
        let kept = kept.min(prompt);
        if kept == 0 {
            return Err(Reason::LosesPrompt);
        }
        Ok(Room {
            prompt: kept,
            completion: max_length.saturating_sub(kept),
        })
    }

    /// The room of a prompt beside the completion of another example: the prompt is whole, and the
    /// completion loses its end if that is allowed.
    pub(super) fn room_of_mismatch(self, sequence: &Sequence) -> Result<Room, Reason> {
        let truncation = match self {
            Self::Drop { max_length } | Self::PromptMiddle { max_length } => {
                Self::Drop { max_length }
            }
            Self::CompletionStart { max_length }
            | Self::PromptMiddleThenCompletionStart { max_length, .. } => {
                Self::CompletionStart { max_length }
            }
        };
        truncation.room(std::slice::from_ref(sequence))
    }
}

impl Room {
    /// Shortens the sequences of an example; `frame` is that of a prompt which is cut.
    pub(super) fn shorten(
        self,
        sequences: &[Sequence],
        frame: Frame,
    ) -> Result<(Vec<Sequence>, Cut), Reason> {
        let cut = Cut {
            prompt: sequences.iter().any(|s| s.prompt().len() > self.prompt),
            completions: sequences
                .iter()
                .filter(|s| s.completion().len() > self.completion)
                .count(),
        };
        if cut.prompt && frame.opening + frame.closing >= self.prompt {
            return Err(Reason::LosesPrompt);
        }
        let shortened = sequences.iter().map(|s| self.shorten_one(s, frame.opening));
        let shortened: Vec<_> = shortened.collect();
        if shortened.iter().any(|s| s.length() == 0) {
            return Err(Reason::LosesCompletion);
        }
        Ok((shortened, cut))
    }

    fn shorten_one(self, sequence: &Sequence, opening: usize) -> Sequence {
        let whole = sequence.prompt();
        let prompt = if whole.len() > self.prompt {
            let last = whole.len() - (self.prompt - opening);
            [&whole[..opening], &whole[last..]].concat()
        } else {
            whole.to_vec()
        };
        let end = sequence.completion().len().min(self.completion);
        let shorter = Sequence::new(&prompt, &sequence.completion()[..end]);
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
}
