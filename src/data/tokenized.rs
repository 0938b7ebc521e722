use std::error::Error;

use burn::data::dataset::{Dataset, DatasetError};

use super::encode::{Encode, Encoded};
use super::encoder::Encoder;
use super::error::DataError;
use super::example::Example;
use super::in_order::in_order;
use super::kept_ids::KeptIds;
use super::label::Labels;
use super::message::Text;
use super::options::TokenizeOptions;
use super::report::{Dropped, EncodedExample, Ends, Report};
use super::truncate::Reason;

/// A dataset of texts as a dataset of token ids: those examples that survive truncation.
///
/// The tokenizer is yours: a closure that turns an [`Encode`] into ids, or into ids and marks of
/// those that the assistant writes. This dataset finds where a completion begins
/// ([`completion_start`](super::completion_start)) and which of its tokens count
/// ([`Turns`](super::Turns)). **Of a conversation only the assistant's messages count, unless you say
/// otherwise.**
///
/// The closure runs over all examples at once, on all processors. Their ids are kept, up to
/// [a number of bytes](TokenizeOptions::with_memory), and made again for further examples whenever one
/// is asked for; everything else of an example stays in the dataset of texts. Texts in memory that
/// nobody needs any more are given up for their ids by [`TokenizedExamples`]. A pair of single answers
/// takes three calls; a completion of several turns one or two more for each of the assistant's,
/// unless the tokenizer marks them.
pub struct Tokenized<D, T> {
    texts: D,
    tokenizer: T,
    options: TokenizeOptions,
    kept: Vec<usize>,
    ids: KeptIds,
    report: Report,
}

impl<D, T> Tokenized<D, T> {
    /// Tokenizes every example.
    ///
    /// # Errors
    ///
    /// The truncation leaves no token of a prompt or a completion. Or a row cannot be read, the
    /// tokenizer refuses it, or its template writes earlier turns otherwise once others follow, so
    /// that it is unknown which tokens are the assistant's: with [`OnError::Skip`](super::OnError) such
    /// rows are dropped. Examples that are only too long always are, as the [`Report`] says.
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
        let (mut kept, mut ids) = (Vec::new(), KeptIds::new(options.memory));
        let encoder = Encoder {
            tokenizer: &tokenizer,
            options,
        };
        let get = |index| Ok(texts.get(index)?);
        let report = tokenize(&encoder, 0..texts.len(), get, |index, _, encoded| {
            kept.push(index);
            ids.push(&encoded.shortened);
        })?;
        Ok(Self {
            texts,
            tokenizer,
            options,
            kept,
            ids,
            report,
        })
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

impl<D, T, L, R, E> Dataset<Example<Vec<u32>, L>> for Tokenized<D, T>
where
    D: Dataset<Example<Text, L>>,
    T: Fn(Encode<'_>) -> Result<R, E> + Send + Sync,
    R: Into<Encoded>,
    E: Into<Box<dyn Error + Send + Sync>>,
    L: Labels,
{
    fn get(&self, place: usize) -> Result<Example<Vec<u32>, L>, DatasetError> {
        let index = self.kept[place];
        let example = self.texts.get(index)?;
        if let Some(sequences) = self.ids.get(place) {
            return Ok(Example::from_sequences(example, &sequences));
        }
        let encoder = Encoder {
            tokenizer: &self.tokenizer,
            options: self.options,
        };
        let encoded = encoder.encode(index, &example);
        match encoded.map_err(DatasetError::new)? {
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

/// Examples as token ids, in memory: what [`Tokenized`] holds, without the texts.
///
/// Each text is dropped once its ids are made, so that both are never in memory as a whole.
#[derive(Debug)]
#[non_exhaustive]
pub struct TokenizedExamples<L> {
    /// The examples that are kept, in the order of the texts.
    pub examples: Vec<Example<Vec<u32>, L>>,
    /// The index of each of them among the texts.
    pub kept: Vec<usize>,
    /// The report: what is kept, what is not, and why.
    pub report: Report,
}

impl<L: Labels> TokenizedExamples<L> {
    /// Tokenizes every example.
    ///
    /// # Errors
    ///
    /// As [`Tokenized::new`].
    pub fn new<T, R, E>(
        texts: Vec<Example<Text, L>>,
        tokenizer: T,
        options: impl Into<TokenizeOptions>,
    ) -> Result<Self, DataError>
    where
        T: Fn(Encode<'_>) -> Result<R, E> + Send + Sync,
        R: Into<Encoded>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let encoder = Encoder {
            tokenizer: &tokenizer,
            options: options.into(),
        };
        let (mut kept, mut examples) = (Vec::new(), Vec::new());
        let report = tokenize(&encoder, texts, Ok, |index, example, encoded| {
            kept.push(index);
            examples.push(Example::from_sequences(example, &encoded.shortened));
        })?;
        Ok(Self {
            examples,
            kept,
            report,
        })
    }
}

/// Encodes all examples that `example` makes of `source`, gives those that are kept to `keep`, in
/// order, and reports.
fn tokenize<S, T, L, R, E>(
    encoder: &Encoder<'_, T>,
    source: impl IntoIterator<Item = S, IntoIter: Send>,
    example: impl Fn(S) -> Result<Example<Text, L>, DataError> + Sync,
    mut keep: impl FnMut(usize, Example<Text, L>, &EncodedExample),
) -> Result<Report, DataError>
where
    S: Send,
    T: Fn(Encode<'_>) -> Result<R, E> + Send + Sync,
    R: Into<Encoded>,
    E: Into<Box<dyn Error + Send + Sync>>,
    L: Labels,
{
    let options = encoder.options;
    options.truncation.check()?;
    let encode = |(index, source)| match example(source) {
        Ok(example) => {
            let encoded = encoder.encode(index, &example);
            (example.line, Some(example), encoded)
        }
        Err(error) => (error.line(), None, Err(error)),
    };
    let (mut report, mut ends, mut index) = (Report::default(), Ends::default(), 0);
    let take = |(line, example, encoded): (_, Option<Example<Text, L>>, _)| {
        if let Some(example) = &example {
            report.read(example);
        }
        let reason = match (example, encoded) {
            (Some(example), Ok(Ok(encoded))) => {
                report.look(&encoded, &mut ends);
                report.keep(&example.label.label(), &encoded);
                keep(index, example, &encoded);
                None
            }
            (_, Ok(Err(reason))) => Some(reason),
            (_, Err(error)) if options.on_error.skips(&error) => {
                Some(Reason::Error(error.without_place()))
            }
            (_, Err(error)) => return Err(error),
            (None, Ok(_)) => unreachable!("no example was encoded"),
        };
        report.dropped.extend(reason.map(|reason| Dropped {
            index,
            line,
            reason,
        }));
        index += 1;
        Ok(())
    };
    let source = source.into_iter().enumerate();
    in_order(source, options.threads(), encode, take)?;
    report.end = ends.most();
    Ok(report)
}
