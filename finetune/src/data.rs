//! From the rows of a file to examples as token ids: read, split by conversation, tokenized,
//! truncated, reported.

use std::path::Path;
use std::sync::Arc;

use burn::data::dataset::transform::SelectionDataset;
use burn::data::dataset::{Dataset, InMemDataset};
use burn_preference::data::{
    Desirable, Example, Format, JsonLines, Labels, Mismatched, OnError, ParquetFile, PromptFormat,
    Text, TokenizeOptions, Tokenized, Truncation, WithMismatched, split_by,
};

use crate::failure::Failure;
use crate::text::Chat;

/// Options of reading: lengths, the split, and what becomes of bad rows.
#[derive(Debug, Clone)]
pub struct DataOptions {
    /// Largest number of tokens of a prompt with its completion; of a prompt the last ones stay, half
    /// of these at most.
    pub max_length: usize,
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
    /// Largest number of tokens of a prompt.
    pub fn max_prompt(&self) -> usize {
        (self.max_length / 2).max(1)
    }

    fn truncation(&self) -> Truncation {
        Truncation::PromptEndThenCompletionStart {
            max_prompt: self.max_prompt(),
            max_length: self.max_length,
        }
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
    pub fn is_unpaired(path: &Path) -> Result<bool, Failure> {
        let row = if is_parquet(path) {
            ParquetFile::new(path, ()).raw()?.flatten().next()
        } else {
            JsonLines::new(path, ()).raw()?.flatten().next()
        };
        let label = row.as_ref().and_then(|(_, row)| row.get("label"));
        Ok(label.is_some_and(|label| !label.is_null()))
    }

    /// The examples of a file of JSON lines, compressed by gzip or not, or of Parquet (`.parquet`).
    fn texts<F: Format>(
        &self,
        path: &Path,
        format: F,
        chat: &Chat,
    ) -> Result<Vec<Example<Text, F::Label>>, Failure> {
        let loaded = if is_parquet(path) {
            ParquetFile::new(path, format).load(self.on_error())?
        } else {
            JsonLines::new(path, format).load(self.on_error())?
        };
        for error in &loaded.skipped {
            eprintln!("left out: {error}");
        }
        let as_chat = chat.converses() && !self.plain;
        Ok(if as_chat {
            loaded
                .examples
                .into_iter()
                .map(Example::into_conversation)
                .collect()
        } else {
            loaded.examples
        })
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
        format: impl Fn() -> F,
        chat: &Chat,
    ) -> Result<Splits<F::Label>, Failure>
    where
        F: Format,
        F::Label: Labels,
    {
        let texts = self.texts(train, format(), chat)?;
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
            let measured = Arc::new(InMemDataset::new(self.texts(path, format(), chat)?));
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
        print!("{name} {}", tokens.report());
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
        for example in self.texts(path, PromptFormat::default(), chat)? {
            if !prompts.contains(&example.prompt) {
                prompts.push(example.prompt);
            }
        }
        Ok(prompts)
    }
}

fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "parquet")
}
