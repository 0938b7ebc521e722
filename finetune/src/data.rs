//! From the rows of a file to examples as token ids: read, split by conversation, tokenized,
//! truncated, reported.

use std::path::Path;
use std::sync::Arc;

use burn::data::dataset::transform::SelectionDataset;
use burn::data::dataset::{Dataset, InMemDataset};
use burn_preference::data::{
    DataError, Desirable, Example, Format, JsonLines, Labels, Message, Mismatched, Object, OnError,
    PairFormat, ParquetFile, PromptFormat, RankedFormat, Text, TokenizeOptions, Tokenized,
    Truncation, UnpairedFormat, WithMismatched, split_by,
};

use crate::columns::ColumnNames;
use crate::failure::Failure;
use crate::text::Chat;

/// Options of reading: lengths, the split, and what becomes of bad rows.
#[derive(Debug, Clone)]
pub struct DataOptions {
    /// Largest number of tokens of a prompt with its completion. In a row that is longer the prompt
    /// loses its middle, down to half of these, and then the completion its end.
    pub max_length: usize,
    /// Names of columns and roles.
    pub columns: ColumnNames,
    /// The column whose values say which rows belong together; without it, the prompt.
    pub group: Option<String>,
    /// Share of the groups of rows that are held out.
    pub held_out: f64,
    /// True if strings stay plain text, also where the model has a chat template.
    pub plain: bool,
    /// True if rows that cannot be read are left out, and reported.
    pub skip_errors: bool,
    /// Seed of the split.
    pub seed: u64,
}

/// Examples as token ids.
pub type Examples<L> = Vec<Example<Vec<u32>, L>>;

/// Examples to train on, and examples of other conversations to measure on.
#[derive(Debug, Clone)]
pub struct Splits<L> {
    /// Examples to train on.
    pub train: Examples<L>,
    /// Examples to measure on.
    pub held_out: Examples<L>,
    /// Prompts of the held-out examples, as the file has them.
    pub held_out_prompts: Vec<Text>,
}

impl DataOptions {
    fn truncation(&self) -> Truncation {
        Truncation::PromptMiddleThenCompletionStart {
            min_prompt: (self.max_length / 2).max(1),
            max_length: self.max_length,
        }
    }

    /// True if strings become messages.
    fn as_conversation(&self, chat: &Chat) -> bool {
        chat.converses() && !self.plain
    }

    /// The format of pairs.
    ///
    /// # Errors
    ///
    /// A column is named that such rows do not have.
    pub fn pairs(&self, chat: &Chat) -> Result<PairFormat, Failure> {
        self.columns.pairs(self.as_conversation(chat))
    }

    /// The format of unpaired completions.
    ///
    /// # Errors
    ///
    /// As [`pairs`](Self::pairs).
    pub fn unpaired(&self, chat: &Chat) -> Result<UnpairedFormat, Failure> {
        self.columns.unpaired(self.as_conversation(chat))
    }

    /// The format of lists with scores.
    ///
    /// # Errors
    ///
    /// As [`pairs`](Self::pairs).
    pub fn ranked(&self, chat: &Chat) -> Result<RankedFormat, Failure> {
        self.columns.ranked(self.as_conversation(chat))
    }

    fn on_error(&self) -> OnError {
        if self.skip_errors {
            OnError::Skip
        } else {
            OnError::Stop
        }
    }

    /// True if the first row of a file that can be read has a label, as unpaired completions have.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn is_unpaired(&self, path: &Path) -> Result<bool, Failure> {
        let row = raw(path)?.next();
        let label = row.as_ref().and_then(|row| row.get(self.columns.label()));
        Ok(label.is_some_and(|label| !label.is_null()))
    }

    /// The examples of a file of JSON lines, compressed by gzip or not, or of Parquet (`.parquet`).
    fn texts<F: Format>(
        &self,
        path: &Path,
        format: F,
    ) -> Result<Vec<Example<Text, F::Label>>, Failure> {
        // Rows may lack a system message, and so may all of them if nobody asks for one.
        let system = self.columns.system_column.as_deref();
        let has = |name: &str| Ok(raw(path)?.any(|row| row.get(name).is_some()));
        if let Some(name) = system.filter(|name| !name.is_empty())
            && !has(name).map_err(|error: DataError| self.columns.explain(error))?
        {
            let path = path.display();
            return Err(format!("--system-column: no row of {path} has a column `{name}`").into());
        }
        let loaded = if is_parquet(path) {
            ParquetFile::new(path, format).load(self.on_error())
        } else {
            JsonLines::new(path, format).load(self.on_error())
        };
        let loaded = loaded.map_err(|error| self.columns.explain(error))?;
        for error in &loaded.skipped {
            eprintln!("left out: {error}");
        }
        Ok(loaded.examples)
    }

    /// Reads the examples of `train`, and holds some of them out unless `held_out` is a file of its own.
    ///
    /// # Errors
    ///
    /// A row cannot be read or tokenized or has no column to group by, or nothing is left to train
    /// on or to measure.
    pub fn read<F>(
        &self,
        train: &Path,
        held_out: Option<&Path>,
        format: F,
        chat: &Chat,
    ) -> Result<Splits<F::Label>, Failure>
    where
        F: Format + Clone,
        F::Label: Labels,
    {
        let texts = self.texts(train, format.clone())?;
        let column = |example: &Example<Text, F::Label>| match &self.group {
            Some(column) => example.columns.get(column).map(ToString::to_string),
            None => Some(format!("{:?}", example.prompt)),
        };
        if let Some(example) = texts.iter().find(|example| column(example).is_none()) {
            let line = example.line.unwrap_or_default();
            let name = self.group.as_deref().unwrap_or_default();
            return Err(format!("--group: line {line} has no column `{name}`").into());
        }
        let texts = Arc::new(InMemDataset::new(texts));
        let all = (0..texts.len()).collect();
        let (train, measured, kept) = if let Some(path) = held_out {
            let measured = Arc::new(InMemDataset::new(self.texts(path, format)?));
            let kept = (0..measured.len()).collect();
            (all, measured, kept)
        } else {
            let group = |row: &_| column(row).unwrap_or_default();
            let split = split_by(&texts, self.held_out, self.seed, group)?;
            println!(
                "groups: {} train, {} held out",
                split.train_groups, split.held_out_groups
            );
            (split.train, Arc::clone(&texts), split.held_out)
        };
        let (train, _) = self.tokens("train", texts, train, chat)?;
        let (held_out, held_out_prompts) = if self.held_out == 0.0 && held_out.is_none() {
            (Vec::new(), Vec::new())
        } else {
            self.tokens("held out", measured, kept, chat)?
        };
        Ok(Splits {
            train,
            held_out,
            held_out_prompts,
        })
    }

    fn tokens<L: Labels>(
        &self,
        name: &str,
        texts: Arc<InMemDataset<Example<Text, L>>>,
        indices: Vec<usize>,
        chat: &Chat,
    ) -> Result<(Examples<L>, Vec<Text>), Failure> {
        let texts = SelectionDataset::<InMemDataset<_>, _>::from_indices_checked(texts, indices);
        let options = TokenizeOptions::new(self.truncation()).with_on_error(self.on_error());
        let tokens = Tokenized::new(texts, |text| chat.encode(text), options)?;
        let mut report = tokens.report().clone();
        if let Some(group) = &self.group {
            report.unread_columns.remove(group);
            report.unread_texts.remove(group);
        }
        print!("{name} {report}");
        look_for_special_tokens(tokens.texts(), chat)?;
        if tokens.is_empty() {
            let what = "the file, --held-out and --max-length say how many there are; \
                        --held-out 0 measures nothing";
            return Err(format!("no row of the split `{name}` is left: {what}").into());
        }
        let kept = tokens.kept().iter().map(|index| tokens.texts().get(*index));
        let prompts = kept.map(|example| example.map(|example| example.prompt));
        let prompts = prompts.collect::<Result<_, _>>()?;
        Ok((tokens.iter().collect::<Result<_, _>>()?, prompts))
    }

    /// Puts a completion of another prompt beside each unpaired one, for KTO's z₀.
    ///
    /// # Errors
    ///
    /// All examples of a split have one prompt.
    pub fn mismatched(&self, splits: Splits<Desirable>) -> Result<Splits<WithMismatched>, Failure> {
        let pair_up = |name: &str, examples: Vec<_>| -> Result<Vec<_>, Failure> {
            let examples = Mismatched::new(InMemDataset::new(examples), self.truncation());
            let examples = examples.iter().collect::<Result<_, _>>();
            Ok(examples.map_err(|error| format!("the split `{name}`: {error}"))?)
        };
        Ok(Splits {
            train: pair_up("train", splits.train)?,
            held_out: pair_up("held out", splits.held_out)?,
            held_out_prompts: splits.held_out_prompts,
        })
    }

    /// The prompts of a file, each of them once, whatever else its rows have.
    ///
    /// # Errors
    ///
    /// A row cannot be read or has no prompt.
    pub fn prompts(&self, path: &Path, chat: &Chat) -> Result<Vec<Text>, Failure> {
        let mut prompts: Vec<Text> = Vec::new();
        let format: PromptFormat = self.columns.prompts(self.as_conversation(chat))?;
        for example in self.texts(path, format)? {
            if !prompts.contains(&example.prompt) {
                prompts.push(example.prompt);
            }
        }
        Ok(prompts)
    }
}

/// Says how many conversations have a special token of the model in what is said: a template was
/// applied before.
fn look_for_special_tokens<L: Labels>(
    examples: &impl Dataset<Example<Text, L>>,
    chat: &Chat,
) -> Result<(), Failure> {
    let special = chat.special_tokens();
    let (mut count, mut found) = (0, None);
    for example in examples.iter() {
        let example = example?;
        let texts = std::iter::once(&example.prompt).chain(example.completions());
        let messages = texts.filter_map(Text::as_conversation).flatten();
        let mut said = messages.filter_map(Message::text);
        let token = said.find_map(|said| special.iter().find(|token| said.contains(*token)));
        count += usize::from(token.is_some());
        found = found.or(token);
    }
    if let Some(token) = found {
        println!(
            "look: {count} rows say special tokens of the model, such as `{token}`: was a template \
             applied before? --plain takes text as it stands"
        );
    }
    Ok(())
}

/// The rows of a file that can be read, without a format.
fn raw(path: &Path) -> Result<Box<dyn Iterator<Item = Object>>, DataError> {
    let row = |row: Result<(usize, Object), DataError>| row.ok().map(|(_, row)| row);
    Ok(if is_parquet(path) {
        Box::new(ParquetFile::new(path, ()).raw()?.filter_map(row))
    } else {
        Box::new(JsonLines::new(path, ()).raw()?.filter_map(row))
    })
}

fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "parquet")
}
