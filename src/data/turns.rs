//! The beginning of a completion, and the tokens of it that the assistant writes.

use std::borrow::Cow;

use super::message::Message;

/// The messages of a conversation that count.
///
/// # The default
///
/// **Only what the assistant says counts.** What a user says or a tool answers inside a completion
/// is read by the model and not written by it; an objective that scored it would train the model to
/// write its user's lines. A turn of the assistant is everything between the template's generation
/// prompt and the next message: the text, its tool calls, the end of the turn. TRL's DPO and KTO
/// trainers count the whole completion: that is [`All`](Turns::All).
///
/// Of a demonstration that is a whole conversation
/// ([`DemonstrationFormat::messages`](super::DemonstrationFormat::messages)), the completion begins
/// with the first answer.
///
/// A completion that is a string counts as a whole, whatever stands here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Turns {
    /// Every message of the role `assistant`: the default.
    #[default]
    Assistant,
    /// The last message of the role `assistant`: earlier ones are context.
    Last,
    /// The whole completion, whoever says it. Marks of the tokenizer still hold.
    All,
}

/// The place where completions begin, as TRL has it: the number of ids with which the prompt alone
/// and the prompt with every completion begin.
///
/// Tokens may merge across the border, and some templates open an answer in another way than they
/// show it later. The ids from here on are the completion, so that no text is lost, and the prompt
/// ends here for all completions alike.
pub fn completion_start<'a>(
    prompt: &[u32],
    with_completions: impl IntoIterator<Item = &'a [u32]>,
) -> usize {
    let whole = with_completions.into_iter();
    whole.fold(prompt.len(), |start, whole| {
        start.min(common(prompt, whole))
    })
}

/// The number of ids that both begin with.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The most tokens at a border that may be others once something follows: a merge, an end of
/// sequence that only stands at the very end. More is a template that rewrites what it has said.
const BORDER: usize = 4;

/// A conversation and how it is rendered.
pub(super) struct Rendering<'a, F> {
    /// Prompt and completion.
    pub messages: &'a [Message],
    /// The number of them that are the prompt.
    pub prompt: usize,
    /// The ids of the prompt, with a generation prompt.
    pub opened: &'a [u32],
    /// The ids of all of them.
    pub whole: &'a [u32],
    /// The place among the ids where the completion begins.
    pub start: usize,
    /// The ids of the first messages, with a generation prompt or without.
    pub encode: F,
}

/// The tokens of a completion that count.
pub(super) struct Counted {
    /// A mark for each token: whether it counts.
    pub marks: Vec<bool>,
    /// Messages of the assistant whose last tokens are others once something follows. Those do not
    /// count.
    pub moved_ends: usize,
}

/// Why the turns of a conversation cannot be told apart.
pub(super) enum Failure<E> {
    Tokenizer(E),
    Rewritten(String),
}

impl<F, E> Rendering<'_, F>
where
    F: Fn(&[Message], bool) -> Result<Vec<u32>, E>,
{
    /// For each token of the completion, whether it counts. `marked` is what the tokenizer says of
    /// the assistant's tokens of the whole conversation.
    pub(super) fn counted(
        &self,
        turns: Turns,
        marked: Option<&[bool]>,
    ) -> Result<Counted, Failure<E>> {
        let assistant = |&j: &usize| self.messages[j].is_assistant();
        let of_completion = self.prompt..self.messages.len();
        let length = self.whole.len() - self.start;
        let mut counted = Counted {
            marks: match marked {
                Some(marked) => marked[self.start..].to_vec(),
                None => vec![turns == Turns::All; length],
            },
            moved_ends: 0,
        };
        let Some(last) = of_completion.clone().rfind(assistant) else {
            if turns != Turns::All {
                counted.marks.fill(false);
            }
            return Ok(counted);
        };
        match (turns, marked) {
            (Turns::Assistant, None) => {
                let mut end = self.start;
                for j in of_completion.filter(assistant) {
                    let begin = self.begin(j)?;
                    if begin < end {
                        return Err(rewritten(j));
                    }
                    end = self.count(j, begin, &mut counted)?;
                }
            }
            (Turns::Last, None) => {
                let begin = self.begin(last)?;
                self.count(last, begin, &mut counted)?;
            }
            (Turns::Last, Some(_)) => {
                let begin = self.begin(last)?;
                counted.marks[..begin - self.start].fill(false);
            }
            (Turns::Assistant, Some(_)) | (Turns::All, _) => {}
        }
        Ok(counted)
    }

    /// Counts message `j`, which begins at `begin`, and says where it ends.
    fn count(&self, j: usize, begin: usize, counted: &mut Counted) -> Result<usize, Failure<E>> {
        let (end, is_moved) = self.end(j, begin)?;
        counted.moved_ends += usize::from(is_moved);
        counted.marks[begin - self.start..end - self.start].fill(true);
        Ok(end)
    }

    /// The place where message `j` begins, after its generation prompt.
    fn begin(&self, j: usize) -> Result<usize, Failure<E>> {
        let before = &self.messages[..j];
        let opened = if j == self.prompt {
            Cow::Borrowed(self.opened)
        } else {
            (self.encode)(before, true)
                .map(Cow::Owned)
                .map_err(Failure::Tokenizer)?
        };
        // Behind its own opening, also where another completion of the example moves the prompt's
        // end.
        let begin = common(&opened, self.whole);
        if begin < opened.len() {
            // Only the generation prompt may be another.
            let closed = (self.encode)(before, false).map_err(Failure::Tokenizer)?;
            if common(&closed, self.whole) + BORDER < closed.len() {
                return Err(rewritten(j.saturating_sub(1)));
            }
        }
        if begin < self.start {
            return Err(rewritten(j));
        }
        Ok(begin)
    }

    /// The place where message `j`, which begins at `begin`, ends, and whether it ends otherwise
    /// alone.
    fn end(&self, j: usize, begin: usize) -> Result<(usize, bool), Failure<E>> {
        if j + 1 == self.messages.len() {
            return Ok((self.whole.len(), false));
        }
        let closed = (self.encode)(&self.messages[..=j], false).map_err(Failure::Tokenizer)?;
        let end = common(&closed, self.whole);
        let is_rewritten = end + BORDER < closed.len();
        if is_rewritten || end < begin || (end == begin && closed.len() > end) {
            return Err(rewritten(j));
        }
        Ok((end, end < closed.len()))
    }
}

fn rewritten<E>(place: usize) -> Failure<E> {
    Failure::Rewritten(format!(
        "the template writes message {place} otherwise once others follow it, so that the \
         assistant's tokens cannot be told: return a mask with the ids"
    ))
}
