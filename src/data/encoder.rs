use std::error::Error;

use super::encode::{Content, Encode, Encoded, TokenizerError, ask};
use super::error::DataError;
use super::example::Example;
use super::message::{Message, Text};
use super::options::TokenizeOptions;
use super::report::EncodedExample;
use super::truncate::{Frame, Reason};
use super::turns::{Failure, Rendering, completion_start};
use crate::tokens::Sequence;

/// A tokenizer with the options of its dataset.
pub(super) struct Encoder<'a, T> {
    pub(super) tokenizer: &'a T,
    pub(super) options: TokenizeOptions,
}

impl<T> Encoder<'_, T> {
    /// An example as ids, or why it is left out.
    pub(super) fn encode<L, R, E>(
        &self,
        index: usize,
        example: &Example<Text, L>,
    ) -> Result<Result<EncodedExample, Reason>, DataError>
    where
        T: Fn(Encode<'_>) -> Result<R, E>,
        R: Into<Encoded>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let refused = |source| DataError::Tokenizer {
            index,
            line: example.line,
            source,
        };
        let (alone, whole) = self.ids(example).map_err(refused)?;
        let start = completion_start(&alone, whole.iter().map(|(encoded, _)| &*encoded.ids));
        if start == 0 && !alone.is_empty() {
            return Ok(Err(Reason::NoCommonPrompt));
        }
        let mut sequences = Vec::with_capacity(whole.len());
        let mut moved_ends = 0;
        for (encoded, messages) in &whole {
            let (prompt, completion) = encoded.ids.split_at(start);
            let mut sequence = Sequence::new(prompt, completion);
            let marked = encoded.counted.as_deref();
            let counted = match (&example.prompt, messages) {
                (Text::Conversation(before), Some(messages)) => {
                    let rendering = Rendering {
                        messages,
                        prompt: before.len(),
                        opened: &alone,
                        whole: &encoded.ids,
                        start,
                        encode: |messages: &[Message], open: bool| {
                            let content = Content::Conversation(messages);
                            ask(self.tokenizer, content, open, &example.columns)
                                .map(|encoded| encoded.ids)
                        },
                    };
                    let counted = rendering.counted(self.options.turns, marked);
                    let counted = counted.map_err(|failure| refused(failure.into()))?;
                    moved_ends += counted.moved_ends;
                    Some(counted.marks)
                }
                _ => marked.map(|marked| marked[start..].to_vec()),
            };
            if let Some(counted) = counted {
                sequence = sequence.with_counted(&counted)?;
            }
            sequences.push(sequence);
        }
        let room = match self.options.truncation.room(&sequences) {
            Ok(room) => room,
            Err(reason) => return Ok(Err(reason)),
        };
        let frame = if start > room.prompt {
            let frame = self.frame(example, &alone).map_err(refused)?;
            frame.without_end(alone.len() - start)
        } else {
            Frame::default()
        };
        let shortened = room.shorten(&sequences, frame);
        Ok(shortened.map(|(shortened, cut)| EncodedExample {
            alone,
            whole: sequences,
            shortened,
            cut,
            moved_ends,
        }))
    }

    /// The ids of a prompt that do not depend on what it says after its system messages.
    fn frame<L, R, E>(
        &self,
        example: &Example<Text, L>,
        prompt: &[u32],
    ) -> Result<Frame, TokenizerError>
    where
        T: Fn(Encode<'_>) -> Result<R, E>,
        R: Into<Encoded>,
        E: Into<TokenizerError>,
    {
        let columns = &example.columns;
        let other = match &example.prompt {
            Text::Plain(_) => ask(self.tokenizer, Content::Plain(""), true, columns)?,
            Text::Conversation(messages) => {
                let is_said = |message: &Message| !message.is_system();
                let Some(first) = messages.iter().position(is_said) else {
                    return Ok(Frame::of(prompt, prompt));
                };
                // Not blank, which some templates refuse.
                let other = Message::new(&messages[first].role, ".");
                let messages = [&messages[..first], &[other]].concat();
                ask(
                    self.tokenizer,
                    Content::Conversation(&messages),
                    true,
                    columns,
                )?
            }
        };
        Ok(Frame::of(prompt, &other.ids))
    }

    /// The ids of the prompt alone and of the prompt with each completion, and of conversations the
    /// messages of the latter.
    #[allow(
        clippy::type_complexity,
        reason = "an example, taken apart by its only caller"
    )]
    fn ids<L, R, E>(
        &self,
        example: &Example<Text, L>,
    ) -> Result<(Vec<u32>, Vec<(Encoded, Option<Vec<Message>>)>), TokenizerError>
    where
        T: Fn(Encode<'_>) -> Result<R, E>,
        R: Into<Encoded>,
        E: Into<TokenizerError>,
    {
        let columns = &example.columns;
        let alone = example.prompt_ids(self.tokenizer)?;
        let with = |completion: &Text| match (&example.prompt, completion) {
            (Text::Plain(prompt), Text::Plain(completion)) => {
                let text = format!("{prompt}{completion}");
                Ok((
                    ask(self.tokenizer, Content::Plain(&text), false, columns)?,
                    None,
                ))
            }
            (Text::Conversation(prompt), Text::Conversation(completion)) => {
                let messages = [prompt.as_slice(), completion].concat();
                let encoded = ask(
                    self.tokenizer,
                    Content::Conversation(&messages),
                    false,
                    columns,
                )?;
                Ok((encoded, Some(messages)))
            }
            _ => Err("a string beside a conversation in one example".into()),
        };
        let whole = example.completions().iter().map(with);
        Ok((alone, whole.collect::<Result<_, TokenizerError>>()?))
    }
}

impl From<Failure<TokenizerError>> for TokenizerError {
    fn from(failure: Failure<TokenizerError>) -> Self {
        match failure {
            Failure::Tokenizer(error) => error,
            Failure::Rewritten(message) => message.into(),
        }
    }
}
