//! From a file of rows to token ids: read, split by conversation, tokenized, truncated, reported.

use std::path::Path;
use std::sync::Arc;

use burn::data::dataset::transform::SelectionDataset;
use burn::data::dataset::{Dataset, InMemDataset};
use burn_preference::data::{
    Desirable, Example, Format, JsonLines, Labels, Mismatched, Object, OnError, ParquetFile,
    RowError, Text, TokenizeOptions, Tokenized, Truncation, UnpairedFormat, WithMismatched,
    split_by,
};

use crate::chat::{Chat, Failure};

/// What is read, and how much of it.
#[derive(Debug, Clone)]
pub struct DataOptions {
    /// Tokens of a row, at most; a prompt keeps its end, and at least half of them.
    pub max_length: usize,
    /// The column that says which rows belong together; without it, the prompt.
    pub group: Option<String>,
    /// Share of the groups that are held out.
    pub held_out: f64,
    /// Strings stay strings, also where the model has a chat template.
    pub plain: bool,
    /// Rows that cannot be read are left out, and reported.
    pub skip_errors: bool,
    /// Of the split.
    pub seed: u64,
}

/// Rows as token ids.
pub type Examples<L> = Vec<Example<Vec<u32>, L>>;

/// Rows to train on, and rows of other conversations.
#[derive(Debug, Clone)]
pub struct Rows<L> {
    /// To train on.
    pub train: Examples<L>,
    /// To be measured.
    pub held_out: Examples<L>,
    /// The prompts of the latter, as the file has them.
    pub prompts: Vec<Text>,
}

impl DataOptions {
    fn truncation(&self) -> Truncation {
        Truncation::PromptEndThenCompletionStart {
            max_prompt: (self.max_length / 2).max(1),
            max_length: self.max_length,
        }
    }

    fn on_error(&self) -> OnError {
        match self.skip_errors {
            true => OnError::Skip,
            false => OnError::Stop,
        }
    }

    /// Whether the first row of a file that can be read has a thumb.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn has_thumbs(path: &Path) -> Result<bool, Failure> {
        let row = if is_parquet(path) {
            ParquetFile::new(path, Kind).read()?.flatten().next()
        } else {
            JsonLines::new(path, Kind).read()?.flatten().next()
        };
        Ok(row.is_some_and(|row| row.label.0))
    }

    /// The rows of a file of JSON lines, compressed by gzip or not, or of Parquet (`.parquet`).
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
        Ok(match as_chat {
            true => loaded
                .examples
                .into_iter()
                .map(Example::into_conversation)
                .collect(),
            false => loaded.examples,
        })
    }

    /// Reads `train`, and what is held out of it unless `held_out` is a file of its own.
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
    ) -> Result<Rows<F::Label>, Failure>
    where
        F: Format,
        F::Label: Labels,
    {
        let rows = self.texts(train, format(), chat)?;
        let column = |row: &Example<Text, F::Label>| match &self.group {
            Some(column) => row.columns.get(column).map(ToString::to_string),
            None => Some(format!("{:?}", row.prompt)),
        };
        if let Some(row) = rows.iter().find(|row| column(row).is_none()) {
            let line = row.line.unwrap_or_default();
            let name = self.group.as_deref().unwrap_or_default();
            return Err(format!("--group: line {line} has no column `{name}`").into());
        }
        let rows = Arc::new(InMemDataset::new(rows));
        let all = (0..rows.len()).collect();
        let (train, measured, kept) = if let Some(path) = held_out {
            let measured = Arc::new(InMemDataset::new(self.texts(path, format(), chat)?));
            let kept = (0..measured.len()).collect();
            (all, measured, kept)
        } else {
            let group = |row: &_| column(row).unwrap_or_default();
            let split = split_by(&rows, self.held_out, self.seed, group)?;
            println!(
                "groups: {} train, {} held out",
                split.train_groups, split.held_out_groups
            );
            (split.train, Arc::clone(&rows), split.held_out)
        };
        let (train, _) = self.tokens("train", rows, train, chat)?;
        let (held_out, prompts) = if self.held_out == 0.0 && held_out.is_none() {
            (Vec::new(), Vec::new())
        } else {
            self.tokens("held out", measured, kept, chat)?
        };
        Ok(Rows {
            train,
            held_out,
            prompts,
        })
    }

    fn tokens<L: Labels>(
        &self,
        name: &str,
        rows: Arc<InMemDataset<Example<Text, L>>>,
        which: Vec<usize>,
        chat: &Chat,
    ) -> Result<(Examples<L>, Vec<Text>), Failure> {
        let texts = SelectionDataset::<InMemDataset<_>, _>::from_indices_checked(rows, which);
        let options = TokenizeOptions::new(self.truncation()).with_on_error(self.on_error());
        let tokens = Tokenized::new(texts, |text| chat.encode(text), options)?;
        print!("{name} {}", tokens.report());
        if tokens.is_empty() {
            let what = "the file, --held-out and --max-length say how many there are; \
                        --held-out 0 measures nothing";
            return Err(format!("no row of the split `{name}` is left: {what}").into());
        }
        let kept = tokens.kept().iter().map(|row| tokens.texts().get(*row));
        let prompts = kept.map(|row| row.map(|row| row.prompt));
        let prompts = prompts.collect::<Result<_, _>>()?;
        Ok((tokens.iter().collect::<Result<_, _>>()?, prompts))
    }

    /// Thumbs with the completions of other prompts beside them, for KTO's z₀.
    ///
    /// # Errors
    ///
    /// All rows of a split have one prompt.
    pub fn mismatched(&self, rows: Rows<Desirable>) -> Result<Rows<WithMismatched>, Failure> {
        let pair_up = |name: &str, rows: Vec<_>| -> Result<Vec<_>, Failure> {
            let rows = Mismatched::new(InMemDataset::new(rows), self.truncation());
            let rows = rows.iter().collect::<Result<_, _>>();
            Ok(rows.map_err(|error| format!("the split `{name}`: {error}"))?)
        };
        Ok(Rows {
            train: pair_up("train", rows.train)?,
            held_out: pair_up("held out", rows.held_out)?,
            prompts: rows.prompts,
        })
    }

    /// The prompts of a file, each of them once, whatever else its rows have.
    ///
    /// # Errors
    ///
    /// A row cannot be read or has no prompt.
    pub fn prompts(&self, path: &Path, chat: &Chat) -> Result<Vec<Text>, Failure> {
        let rows = self.texts(path, Prompts, chat)?;
        let mut prompts: Vec<Text> = Vec::new();
        for row in rows {
            if !prompts.contains(&row.prompt) {
                prompts.push(row.prompt);
            }
        }
        Ok(prompts)
    }
}

fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "parquet")
}

/// Rows of which only the kind is read: a thumb up where there is any thumb.
struct Kind;

impl Format for Kind {
    type Label = Desirable;

    fn parse(&self, row: Object) -> Result<Example<Text, Desirable>, RowError> {
        let empty = || Text::Plain(String::new());
        let has_thumb = row.get("label").is_some_and(|label| !label.is_null());
        Ok(Example::unpaired(empty(), empty(), has_thumb))
    }
}

/// Rows of which only the prompt is read.
struct Prompts;

impl Format for Prompts {
    type Label = Desirable;

    fn parse(&self, mut row: Object) -> Result<Example<Text, Desirable>, RowError> {
        // Whatever answers there are: none.
        row.insert("completion", "".into());
        row.insert("label", serde_json::Value::Bool(true).into());
        UnpairedFormat::default().parse(row)
    }
}
