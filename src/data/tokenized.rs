use std::error::Error;

use burn::data::dataset::{Dataset, DatasetError};

use super::encode::{Content, Encode, Encoded, TokenizerError, ask};
use super::error::DataError;
use super::example::Example;
use super::label::Labels;
use super::load::OnError;
use super::message::{Message, Text};
use super::report::{Dropped, EncodedExample, Ends, Report};
use super::truncate::{Frame, Reason, Truncation};
use super::turns::{Failure, Rendering, Turns, completion_start};
use crate::tokens::Sequence;

/// Options of [`Tokenized`]. A [`Truncation`] alone is one, with the other defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenizeOptions {
    truncation: Truncation,
    turns: Turns,
    on_error: OnError,
}

impl TokenizeOptions {
    /// Options with this truncation; the assistant's turns count, and a bad row is an error.
    pub fn new(truncation: Truncation) -> Self {
        Self {
            truncation,
            turns: Turns::default(),
            on_error: OnError::default(),
        }
    }

    /// Sets the messages of a conversation that count; the default is [`Turns::Assistant`].
    pub fn with_turns(self, turns: Turns) -> Self {
        Self { turns, ..self }
    }

    /// Sets the treatment of a row that cannot be read or tokenized; the default is
    /// [`OnError::Stop`].
    pub fn with_on_error(self, on_error: OnError) -> Self {
        Self { on_error, ..self }
    }
}

impl From<Truncation> for TokenizeOptions {
    fn from(truncation: Truncation) -> Self {
        Self::new(truncation)
    }
}

/// A dataset of texts as a dataset of token ids: those examples that survive truncation.
///
/// The tokenizer is yours: a closure that turns an [`Encode`] into ids, or into ids and marks of
/// those that the assistant writes. This dataset finds where a completion begins
/// ([`completion_start`]) and which of its tokens count ([`Turns`]). **Of a conversation only the
/// assistant's messages count, unless you say otherwise.**
///
/// The closure runs once over all examples for the [`Report`], and again whenever one is asked for;
/// wrap the dataset into Burn's `InMemDataset` to keep the ids instead. A pair of single answers
/// takes three calls; a completion of several turns one or two more for each of the assistant's,
/// unless the tokenizer marks them.
pub struct Tokenized<D, T> {
    texts: D,
    tokenizer: T,
    options: TokenizeOptions,
    kept: Vec<usize>,
    report: Report,
}

impl<D, T> Tokenized<D, T> {
    /// Tokenizes every example once.
    ///
    /// # Errors
    ///
    /// The truncation leaves no token of a prompt or a completion. Or a row cannot be read, the
    /// tokenizer refuses it, or its template writes earlier turns otherwise once others follow, so
    /// that it is unknown which tokens are the assistant's: with [`OnError::Skip`] such rows are
    /// dropped. Examples that are only too long always are, as the [`Report`] says.
    pub fn new<L, R, E>(
        texts: D,
        tokenizer: T,
        options: impl Into<TokenizeOptions>,
    ) -> Result<Self, DataError>
    where
        D: Dataset<Example<Text, L>>,
        T: Fn(Encode<'_>) -> Result<R, E> + Send + Sync,
        R: Into<Encoded>,
        E: Into<Box<dyn Error + Send + Sync>>,
        L: Labels,
    {
        let options = options.into();
        options.truncation.check()?;
        let mut tokenized = Self {
            kept: Vec::new(),
            report: Report::default(),
            texts,
            tokenizer,
            options,
        };
        let mut ends = Ends::default();
        for index in 0..tokenized.texts.len() {
            let (line, outcome) = match tokenized.texts.get(index) {
                Ok(example) => {
                    tokenized.report.read(&example);
                    let outcome = tokenized.encode(index, &example);
                    if let Ok(Ok(encoded)) = &outcome {
                        tokenized.kept.push(index);
                        tokenized.report.look(encoded, &mut ends);
                        tokenized.report.keep(&example.label.label(), encoded);
                    }
                    (example.line, outcome)
                }
                Err(error) => {
                    let error = DataError::from(error);
                    (error.line(), Err(error))
                }
            };
            let reason = match outcome {
                Ok(Ok(_)) => continue,
                Ok(Err(reason)) => reason,
                Err(error) if tokenized.options.on_error.skips(&error) => {
                    Reason::Error(error.without_place())
                }
                Err(error) => return Err(error),
            };
            let dropped = Dropped {
                index,
                line,
                reason,
            };
            tokenized.report.dropped.push(dropped);
        }
        tokenized.report.end = ends.most();
        Ok(tokenized)
    }

    /// The report: what is kept, what is not, and why.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The dataset of texts.
    pub fn texts(&self) -> &D {
        &self.texts
    }

    /// The index of each example of this dataset in the dataset of texts.
    pub fn kept(&self) -> &[usize] {
        &self.kept
    }
}

impl<D, T> Tokenized<D, T> {
    /// An example as ids, or why it is left out.
    fn encode<L, R, E>(
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
                            ask(&self.tokenizer, content, open, &example.columns)
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
            Text::Plain(_) => ask(&self.tokenizer, Content::Plain(""), true, columns)?,
            Text::Conversation(messages) => {
                let is_said = |message: &Message| !message.is_system();
                let Some(first) = messages.iter().position(is_said) else {
                    return Ok(Frame::of(prompt, prompt));
                };
                // Not blank, which some templates refuse.
                let other = Message::new(&messages[first].role, ".");
                let messages = [&messages[..first], &[other]].concat();
                ask(
                    &self.tokenizer,
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
        let alone = example.prompt_ids(&self.tokenizer)?;
        let with = |completion: &Text| match (&example.prompt, completion) {
            (Text::Plain(prompt), Text::Plain(completion)) => {
                let text = format!("{prompt}{completion}");
                Ok((
                    ask(&self.tokenizer, Content::Plain(&text), false, columns)?,
                    None,
                ))
            }
            (Text::Conversation(prompt), Text::Conversation(completion)) => {
                let messages = [prompt.as_slice(), completion].concat();
                let encoded = ask(
                    &self.tokenizer,
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

impl<D, T, L, R, E> Dataset<Example<Vec<u32>, L>> for Tokenized<D, T>
where
    D: Dataset<Example<Text, L>>,
    T: Fn(Encode<'_>) -> Result<R, E> + Send + Sync,
    R: Into<Encoded>,
    E: Into<Box<dyn Error + Send + Sync>>,
    L: Labels,
{
    fn get(&self, index: usize) -> Result<Example<Vec<u32>, L>, DatasetError> {
        let index = self.kept[index];
        let example = self.texts.get(index)?;
        match self.encode(index, &example).map_err(DatasetError::new)? {
            Ok(encoded) => Ok(Example::from_sequences(example, &encoded.shortened)),
            Err(reason) => Err(DatasetError::new(DataError::Tokenizer {
                index,
                line: example.line,
                source: format!("it gave other ids before: now {reason}").into(),
            })),
        }
    }

    fn len(&self) -> usize {
        self.kept.len()
    }
}
