//! From the rows of a file to examples as token ids: read, split by conversation, tokenized,
//! truncated, reported.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::path::Path;

use burn::data::dataset::{Dataset, InMemDataset};
use burn_preference::data::{
    DataError, Demonstration, Desirable, Example, Format, Group, Json, Labels, Message, Mismatched,
    OnError, Preference, PromptOnly, Report, Sample, Scores, Split, Text, TokenizeOptions,
    TokenizedExamples, Truncation, WithMismatched, split_by,
};

use crate::columns::ColumnNames;
use crate::failure::Failure;
use crate::ranks::speaks;
use crate::say;
use crate::source::{DataSource, RowKind, load_rows, raw};
use crate::text::{Chat, Unwritten};

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

/// The name of the split to train on.
const TRAIN: &str = "train";

/// Examples as token ids.
pub type Examples<L> = Vec<Example<Vec<u32>, L>>;

/// Examples as texts.
pub type Texts<L> = Vec<Example<Text, L>>;

/// Files with their examples.
type Files<L> = Vec<(DataSource, Texts<L>)>;

/// A prompt with the columns of its row.
pub type Prompt = Example<Text, PromptOnly>;

/// Examples to train on, and examples of other conversations to measure on.
#[derive(Debug, Clone)]
pub struct Splits<L> {
    /// Examples to train on.
    pub train: Examples<L>,
    /// Examples to measure on.
    pub held_out: Examples<L>,
    /// Prompts of the held-out examples, as the file has them.
    pub held_out_prompts: Vec<Prompt>,
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

    /// The pairs of a file.
    ///
    /// # Errors
    ///
    /// The file has rows of another kind, a column is named that pairs do not have, or a row cannot
    /// be read.
    pub fn pairs(&self, path: &Path, chat: &Chat) -> Result<Texts<Preference>, Failure> {
        self.expect(path, RowKind::Pairs)?;
        let format = self.columns.pairs(self.as_conversation(chat))?;
        self.texts(path, format)
    }

    /// The unpaired completions of a file. Of pairs, the chosen completions are desirable, and the
    /// rejected ones are not. Rows that are both are unpaired completions.
    ///
    /// # Errors
    ///
    /// As [`pairs`](Self::pairs).
    pub fn unpaired(&self, path: &Path, chat: &Chat) -> Result<Texts<Desirable>, Failure> {
        let as_conversation = self.as_conversation(chat);
        let has_both = self.has_unpaired(path)?;
        if has_both || self.kind(path)? != Some(RowKind::Pairs) {
            if !has_both {
                self.expect(path, RowKind::Unpaired)?;
            }
            return self.texts(path, self.columns.unpaired(as_conversation)?);
        }
        let pairs = self.texts(path, self.columns.pairs(as_conversation)?)?;
        let unpaired: Vec<_> = pairs.iter().flat_map(Example::unpair).collect();
        say!(
            "{}: {} pairs, taken as {} unpaired completions: the chosen ones desirable, the \
             rejected ones not",
            path.display(),
            pairs.len(),
            unpaired.len()
        );
        Ok(unpaired)
    }

    /// Whether the first row that can be read has an unpaired completion and its label, also where
    /// it is a pair as well, of which no option names a column.
    fn has_unpaired(&self, path: &Path) -> Result<bool, Failure> {
        let names = &self.columns;
        let mut rows = raw(path).map_err(|error| names.explain(error))?;
        let is_named = names.chosen_column.is_some() || names.rejected_column.is_some();
        Ok(rows.next().is_some_and(|row| {
            let has = |name| row.get(name).is_some_and(|value| !value.is_null());
            has(names.completion()) && has(names.label()) && !is_named
        }))
    }

    /// The lists with scores of a file.
    ///
    /// # Errors
    ///
    /// As [`pairs`](Self::pairs).
    pub fn ranked(&self, path: &Path, chat: &Chat) -> Result<Texts<Scores>, Failure> {
        self.expect(path, RowKind::Lists)?;
        let format = self.columns.ranked(self.as_conversation(chat))?;
        self.texts(path, format)
    }

    /// The groups of samples of a file, as `--sample` writes them with `--every-answer`.
    ///
    /// # Errors
    ///
    /// As [`pairs`](Self::pairs); the file has no log-probabilities of a sampler.
    pub fn groups(&self, path: &Path, chat: &Chat) -> Result<Texts<Group>, Failure> {
        self.expect(path, RowKind::Lists)?;
        let format = self.columns.groups(self.as_conversation(chat))?;
        self.texts(path, format)
    }

    /// The demonstrations of a file: completions, or whole conversations. A label beside them has to
    /// say that they are desirable.
    ///
    /// # Errors
    ///
    /// As [`pairs`](Self::pairs), and a completion is undesirable.
    pub fn demonstrations(
        &self,
        path: &Path,
        chat: &Chat,
    ) -> Result<Texts<Demonstration>, Failure> {
        let names = &self.columns;
        let format = names.demonstrations(self.as_conversation(chat))?;
        let mut rows = raw(path).map_err(|error| names.explain(error))?;
        let is_one = rows.next().is_some_and(|row| {
            let has = |name| row.get(name).is_some_and(|value| !value.is_null());
            has(names.completion()) || has(names.messages())
        });
        if !is_one {
            self.expect(path, RowKind::Demonstrations)?;
        }
        let demonstrations = self.texts(path, format)?;
        let is_undesirable = |row: &&Example<Text, _>| match row.columns.get(names.label()) {
            Some(Json::Bool(desirable)) => !desirable,
            Some(label) => label.as_f64() == Some(0.0),
            None => false,
        };
        if let Some(row) = demonstrations.iter().find(is_undesirable) {
            let (path, line) = (path.display(), row.line.unwrap_or_default());
            let label = names.label();
            let what = format!(
                "an undesirable completion by its `{label}`, and this objective imitates (--loss kto \
                 learns from both; if it is another label, --label-column NAME says which one counts)"
            );
            return Err(format!("{path}:{line}: {what}").into());
        }
        Ok(demonstrations)
    }

    /// The kind of a file's rows, by the columns of the first one that can be read.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn kind(&self, path: &Path) -> Result<Option<RowKind>, Failure> {
        let kind = RowKind::of(path, &self.columns);
        kind.map_err(|error| self.columns.explain(error))
    }

    /// That the rows of a file are of this kind, or of none, whose error names what is missing.
    fn expect(&self, path: &Path, expected: RowKind) -> Result<(), Failure> {
        let found = match self.kind(path)? {
            Some(found) if found != expected => found,
            _ => return Ok(()),
        };
        let help = match found {
            RowKind::Pairs if expected == RowKind::Demonstrations => {
                "--completion-column chosen imitates the chosen ones"
            }
            RowKind::Demonstrations => "--loss sft takes them",
            RowKind::Pairs => "--loss dpo and the like take them, and so do kto and bco",
            RowKind::Unpaired => "--loss kto or bco takes them",
            RowKind::Lists => {
                "--loss rrhf or lipo takes them, and grpo those of --every-answer; `Example::pairs` of the library makes pairs"
            }
        };
        let path = path.display();
        Err(format!("{path}: {found}, and the objective takes {expected} ({help})").into())
    }

    fn on_error(&self) -> OnError {
        if self.skip_errors {
            OnError::Skip
        } else {
            OnError::Stop
        }
    }

    /// The examples of a file.
    fn texts<F: Format>(&self, path: &Path, format: F) -> Result<Texts<F::Label>, Failure> {
        // Rows may lack a system message, and so may all of them if nobody asks for one.
        let system = self.columns.system_column.as_deref();
        let has = |name: &str| Ok(raw(path)?.any(|row| row.get(name).is_some()));
        if let Some(name) = system.filter(|name| !name.is_empty())
            && !has(name).map_err(|error: DataError| self.columns.explain(error))?
        {
            let path = path.display();
            return Err(format!("--system-column: no row of {path} has a column `{name}`").into());
        }
        let loaded = load_rows(path, format, self.on_error());
        let loaded = loaded.map_err(|error| self.columns.explain(error))?;
        for error in &loaded.skipped {
            if speaks() {
                eprintln!("left out: {error}");
            }
        }
        self.look_for_roles(path)?;
        Ok(loaded.examples)
    }

    /// Names the roles of `--roles` that no message of a file has.
    fn look_for_roles(&self, path: &Path) -> Result<(), Failure> {
        let mut left: Vec<_> = self.columns.roles.iter().map(|(name, _)| name).collect();
        if left.is_empty() {
            return Ok(());
        }
        for row in raw(path).map_err(|error| self.columns.explain(error))? {
            left.retain(|name| !row.iter().any(|(_, value)| has_role(value, name)));
        }
        for name in left {
            let path = path.display();
            say!("look: --roles: no message of {path} is of the role `{name}`");
        }
        Ok(())
    }

    /// Reads the examples of `train` by `texts`, and holds some of them out unless `held_out` has
    /// files.
    ///
    /// # Errors
    ///
    /// A row cannot be read or tokenized or has no column to group by, or nothing is left to train
    /// on or to measure.
    pub fn read<L: Labels>(
        &self,
        train: &[DataSource],
        held_out: &[DataSource],
        texts: impl Fn(&Path) -> Result<Texts<L>, Failure>,
        chat: &Chat,
    ) -> Result<Splits<L>, Failure> {
        let split = |name: &str, files| self.split(name, files, chat);
        self.splits(train, held_out, texts, split)
    }

    /// Reads groups of samples, whose token ids are used as they were drawn: a sample is an example of
    /// its own, and its reward is compared with those of all groups of its split.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read). An id is not below `vocab`, the ids of a row are not those of its
    /// texts under this tokenizer, a sample is longer than it may be, or all rewards of every group
    /// are equal.
    pub fn read_samples(
        &self,
        train: &[DataSource],
        held_out: &[DataSource],
        texts: impl Fn(&Path) -> Result<Texts<Group>, Failure>,
        chat: &Chat,
        vocab: usize,
    ) -> Result<Splits<Sample>, Failure> {
        let split = |name: &str, files| self.samples(name, files, chat, vocab);
        self.splits(train, held_out, texts, split)
    }

    /// The examples that `split` makes of the files of `train`, and those to measure on: of the files
    /// `held_out`, or of some rows of the same files.
    fn splits<L: Clone + Debug + Send + Sync + 'static, M>(
        &self,
        train: &[DataSource],
        held_out: &[DataSource],
        texts: impl Fn(&Path) -> Result<Texts<L>, Failure>,
        split: impl Fn(&str, Files<L>) -> Result<(Examples<M>, Vec<Prompt>), Failure>,
    ) -> Result<Splits<M>, Failure> {
        let files = self.files(train, &texts)?;
        let (train, measured) = if held_out.is_empty() {
            let rows: Vec<_> = files.iter().flat_map(|(_, texts)| texts).collect();
            let parts = self.split_rows(&rows, self.held_out, self.seed)?;
            say!(
                "groups: {} train, {} held out",
                parts.train_groups,
                parts.held_out_groups
            );
            apart(files, &parts.held_out)
        } else {
            (files, self.files(held_out, &texts)?)
        };
        let (train, _) = split(TRAIN, train)?;
        let (held_out, held_out_prompts) = if self.held_out == 0.0 && held_out.is_empty() {
            (Vec::new(), Vec::new())
        } else {
            split("held out", measured)?
        };
        Ok(Splits {
            train,
            held_out,
            held_out_prompts,
        })
    }

    /// A split of groups as samples, and the prompts of its groups.
    fn samples(
        &self,
        name: &str,
        files: Files<Group>,
        chat: &Chat,
        vocab: usize,
    ) -> Result<(Examples<Sample>, Vec<Prompt>), Failure> {
        let groups: Texts<Group> = files.into_iter().flat_map(|(_, groups)| groups).collect();
        for group in &groups {
            self.check_ids(group, chat, vocab).map_err(|error| {
                let line = group.line.unwrap_or_default();
                format!("the split `{name}`, line {line}: {error}")
            })?;
        }
        let samples = Example::samples(&groups)?;
        if samples.is_empty() {
            let what = "the file and --held-out say how many groups there are; --held-out 0 \
                        measures nothing";
            return Err(format!("no group of the split `{name}` is left: {what}").into());
        }
        // Rows with one prompt are one group.
        let rewards = samples
            .iter()
            .map(|sample| (&sample.prompt, sample.label.reward.std()));
        let rewards: HashMap<_, _> = rewards.collect();
        let (all, equal) = (
            rewards.len(),
            rewards.values().filter(|std| **std == 0.0).count(),
        );
        say!("{name}: {} samples of {all} prompts", samples.len());
        if equal == all && name == TRAIN {
            let what = "all answers to each prompt have one score: there is nothing to learn";
            return Err(format!("the split `{name}`: {what}").into());
        }
        if equal > 0 {
            say!(
                "look: the scores of {equal} of {all} prompts are all equal, so that they teach \
                 nothing"
            );
        }
        let prompts: Vec<_> = groups.iter().map(prompt).collect();
        self.look_for_unread(&prompts);
        Ok((samples, prompts))
    }

    /// That the ids of a group are those of its texts, and that its samples may be as long as they
    /// are.
    fn check_ids(
        &self,
        group: &Example<Text, Group>,
        chat: &Chat,
        vocab: usize,
    ) -> Result<(), Failure> {
        let mut drawn = group.label.ids.iter().flatten();
        if let Some(id) = drawn.find(|id| **id as usize >= vocab) {
            return Err(format!("`response_ids`: {id}, and the model has {vocab} tokens").into());
        }
        let other = "another tokenizer or template wrote them, or the text was changed";
        if chat.prompt(group)? != group.label.prompt_ids {
            return Err(format!("`prompt_ids` are not those of the prompt: {other}").into());
        }
        let places = group.completions().iter().zip(&group.label.ids);
        for (place, (text, ids)) in places.enumerate() {
            let said = match text {
                Text::Plain(text) => Some(text.as_str().into()),
                Text::Conversation(messages) => messages.first().and_then(Message::text),
            };
            if said.as_deref().map(str::trim) != Some(chat.decode(ids)?.trim()) {
                let field = format!("response_ids[{place}]");
                return Err(format!("`{field}` are not those of the response: {other}").into());
            }
            let (length, most) = (group.label.prompt_ids.len() + ids.len(), self.max_length);
            if length > most {
                let what = "a sample is never cut";
                return Err(format!("{length} tokens, and --max-length is {most}: {what}").into());
            }
        }
        Ok(())
    }

    /// The examples of each file, or those of its share.
    fn files<L: Clone + Debug + Send + Sync + 'static>(
        &self,
        sources: &[DataSource],
        texts: impl Fn(&Path) -> Result<Texts<L>, Failure>,
    ) -> Result<Files<L>, Failure> {
        let file = |source: &DataSource| {
            let (path, texts) = (source.path.display(), texts(&source.path)?);
            if let Some(error) = texts.iter().find_map(|row| self.group(row).err()) {
                return Err(format!("--group: {path}: {error}").into());
            }
            if source.share == 1.0 {
                return Ok((source.clone(), texts));
            }
            // The split's own seed would hold more of the rows out that the share has taken.
            let seed = self.seed.wrapping_add(1);
            let rows: Vec<_> = texts.iter().collect();
            let share = self.split_rows(&rows, source.share, seed)?;
            let (taken, all) = (share.held_out.len(), texts.len());
            if taken == 0 {
                return Err(format!("--data {source}: none of {all} rows is taken").into());
            }
            say!(
                "{path}: {taken} of {all} rows are taken, a share of {}",
                source.share
            );
            let (_, mut taken) = apart(vec![(source.clone(), texts)], &share.held_out);
            Ok(taken.remove(0))
        };
        sources.iter().map(file).collect()
    }

    /// A split of rows by their groups, as places.
    fn split_rows<L: Sync>(
        &self,
        rows: &[&Example<Text, L>],
        share: f64,
        seed: u64,
    ) -> Result<Split, DataError> {
        let places = InMemDataset::new((0..rows.len()).collect());
        split_by(&places, share, seed, |place: &usize| {
            self.group(rows[*place]).unwrap_or_default()
        })
    }

    /// The group of a row, or what its line has instead.
    fn group<L>(&self, row: &Example<Text, L>) -> Result<String, String> {
        let Some(column) = &self.group else {
            return Ok(format!("{:?}", row.prompt));
        };
        let line = row.line.unwrap_or_default();
        match row.columns.get(column) {
            Some(Json::NotJson(found)) => Err(format!("line {line}: `{column}` is {found}")),
            Some(value) => Ok(value.to_string()),
            None => {
                let names = row.columns.iter().map(|(name, _)| format!("`{name}`"));
                let names: Vec<_> = names.collect();
                Err(if names.is_empty() {
                    format!("line {line} has no column `{column}`")
                } else {
                    format!("line {line} has no column `{column}`: {}", names.join(", "))
                })
            }
        }
    }

    /// A split as token ids, and the prompts of its examples if they are held out.
    fn split<L: Labels>(
        &self,
        name: &str,
        files: Files<L>,
        chat: &Chat,
    ) -> Result<(Examples<L>, Vec<Prompt>), Failure> {
        let is_one = files.len() == 1;
        // Prompts of training would only take memory.
        let is_measured = name != TRAIN;
        let (mut examples, mut prompts) = (Vec::new(), Vec::new());
        for (source, texts) in files {
            let name = if is_one {
                name.to_owned()
            } else {
                format!("{name}, {}:", source.path.display())
            };
            let (more, of_them) = self.tokens(&name, texts, chat, is_measured)?;
            examples.extend(more);
            prompts.extend(of_them);
        }
        if examples.is_empty() {
            let what = "the file, --held-out and --max-length say how many there are; \
                        --held-out 0 measures nothing";
            return Err(format!("no row of the split `{name}` is left: {what}").into());
        }
        Ok((examples, prompts))
    }

    fn tokens<L: Labels>(
        &self,
        name: &str,
        texts: Texts<L>,
        chat: &Chat,
        is_measured: bool,
    ) -> Result<(Examples<L>, Vec<Prompt>), Failure> {
        let options = TokenizeOptions::new(self.truncation()).with_on_error(self.on_error());
        let unwritten = unwritten(&format!("the split `{name}`"), &texts, chat)?;
        let special = special_tokens(&texts, chat);
        let all = texts.len();
        // Instructions that the template does not write are none.
        let of_role = |role: &str| Unwritten::Content(role.to_owned());
        let is_unwritten = |role: &str| unwritten.contains_key(&of_role(role));
        let written = ["system", "developer"]
            .map(is_unwritten)
            .contains(&true)
            .then(|| {
                let is_written = |row: &&Example<Text, L>| {
                    let first = row.prompt.as_conversation().and_then(<[Message]>::first);
                    first.is_some_and(|first| {
                        let is_system = ["system", "developer"].contains(&first.role.as_str());
                        is_system && !is_unwritten(&first.role)
                    })
                };
                texts.iter().filter(is_written).count()
            });
        let prompts: Vec<Prompt> = if is_measured {
            texts.iter().map(prompt).collect()
        } else {
            Vec::new()
        };
        let tokens = TokenizedExamples::new(texts, |text| chat.encode(text), options)?;
        let mut report = tokens.report;
        if let Some(group) = &self.group {
            report.unread_columns.remove(group);
            report.unread_texts.remove(group);
        }
        report.system_prompts = written.unwrap_or(report.system_prompts);
        if speaks() {
            print!("{name} {report}");
        }
        say_unwritten(&unwritten, all);
        self.look_for_choices(&report);
        if let Some(special) = special {
            say!("look: {special}");
        }
        let kept = tokens.kept.iter();
        let prompts = kept.filter_map(|place| prompts.get(*place).cloned());
        Ok((tokens.examples, prompts.collect()))
    }

    /// Names columns that may say which answer is better, where options say it too.
    fn look_for_choices(&self, report: &Report) {
        let sides = [
            ("--chosen-column", &self.columns.chosen_column),
            ("--rejected-column", &self.columns.rejected_column),
        ];
        let named = |(option, name): &(_, &Option<String>)| name.is_some().then_some(*option);
        let Some(option) = sides.iter().find_map(named) else {
            return;
        };
        let choices = [
            "winner",
            "winner_model_a",
            "preference",
            "better_response_id",
        ];
        let names = report.unread_columns.keys().map(String::as_str);
        for name in names.filter(|name| choices.contains(name)) {
            say!(
                "look: which answer is better? `{name}` may say it for each row, and {option} says \
                 the same of all"
            );
        }
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
            train: pair_up(TRAIN, splits.train)?,
            held_out: pair_up("held out", splits.held_out)?,
            held_out_prompts: splits.held_out_prompts,
        })
    }

    /// Names the columns of prompts that may be meant for the model; answers are not.
    fn look_for_unread(&self, prompts: &[Prompt]) {
        let mut report = Report::default();
        for prompt in prompts {
            report.read(prompt);
        }
        let names = &self.columns;
        let [chosen, rejected] = names.sides();
        let answers = [chosen, rejected, names.completion(), names.responses()];
        let unread = report.unread_texts.keys().map(String::as_str);
        let is_group = |name: &str| self.group.as_deref() == Some(name);
        let unread = unread.filter(|name| !answers.contains(name) && !is_group(name));
        let unread: Vec<_> = unread.map(quoted).collect();
        if !unread.is_empty() {
            let unread = unread.join(", ");
            say!("look: the model sees nothing of the columns {unread}");
        }
    }

    /// The prompts of some files, whatever else their rows have. Rows with the same prompt and the
    /// same arguments of a template are one, with the columns of the first one.
    ///
    /// # Errors
    ///
    /// A row cannot be read or has no prompt.
    pub fn prompts(&self, sources: &[DataSource], chat: &Chat) -> Result<Vec<Prompt>, Failure> {
        let format = self.columns.prompts(self.as_conversation(chat))?;
        let files = self.files(sources, |path| self.texts(path, format.clone()))?;
        let rows: Vec<Prompt> = files.into_iter().flat_map(|(_, texts)| texts).collect();
        let all = rows.len();
        let mut known = HashSet::new();
        let is_new = |row: &Prompt| {
            let arguments = ["tools", "chat_template_kwargs"].map(|name| row.columns.get(name));
            known.insert(format!("{:?}{arguments:?}", row.prompt))
        };
        let prompts: Vec<Prompt> = rows.into_iter().filter(is_new).collect();
        self.look_for_unread(&prompts);
        if prompts.len() < all {
            let different = prompts.len();
            say!(
                "{all} rows have {different} different prompts: each is answered for its first row"
            );
        }
        say_unwritten(&unwritten("the prompts", &prompts, chat)?, prompts.len());
        Ok(prompts)
    }
}

/// The name of a column as it is printed.
fn quoted(name: &str) -> String {
    format!("`{name}`")
}

/// The prompt of an example, with its columns.
fn prompt<L>(example: &Example<Text, L>) -> Prompt {
    let mut prompt = Example::prompt_only(example.prompt.clone());
    (prompt.columns, prompt.line) = (example.columns.clone(), example.line);
    prompt
}

/// Whether a message, or one of a list, has a role of this name.
fn has_role(value: &Json, name: &str) -> bool {
    let is = |field| value.get(field).and_then(Json::as_str) == Some(name);
    let items = value.as_array().unwrap_or_default();
    is("role") || is("from") || items.iter().any(|item| has_role(item, name))
}

/// The examples of several files in two parts: those whose place in all files is not one of `places`,
/// which are in order, and those whose place is.
fn apart<L>(files: Files<L>, places: &[usize]) -> (Files<L>, Files<L>) {
    let mut places = places.iter().copied().peekable();
    let mut place = 0;
    let mut is_next = || {
        place += 1;
        places.next_if_eq(&(place - 1)).is_some()
    };
    let file = |(source, texts): (DataSource, Texts<L>)| {
        let (apart, rest): (Vec<_>, Vec<_>) = texts.into_iter().partition(|_| is_next());
        ((source.clone(), rest), (source, apart))
    };
    files.into_iter().map(file).unzip()
}

/// Number of examples whose rendering is compared with others.
const RENDERED: usize = 64;

/// What the template does not write of the first examples, and of how many of them.
fn unwritten<L>(
    name: &str,
    examples: &Texts<L>,
    chat: &Chat,
) -> Result<BTreeMap<Unwritten, usize>, Failure> {
    let mut unwritten = BTreeMap::new();
    for example in examples.iter().take(RENDERED) {
        let found = chat.unwritten(example).map_err(|error| {
            let line = example.line.map(|line| format!(", line {line}"));
            format!("{name}{}: {error}", line.unwrap_or_default())
        })?;
        for what in found {
            *unwritten.entry(what).or_default() += 1;
        }
    }
    Ok(unwritten)
}

fn say_unwritten(unwritten: &BTreeMap<Unwritten, usize>, examples: usize) {
    let of = examples.min(RENDERED);
    for (what, count) in unwritten {
        say!("look: {what} ({count} of {of} examples)");
    }
}

/// Says how many conversations have a special token of the model in what is said: a template was
/// applied before.
fn special_tokens<L>(examples: &Texts<L>, chat: &Chat) -> Option<String> {
    let special = chat.special_tokens();
    let (mut count, mut found) = (0, None);
    for example in examples {
        let texts = std::iter::once(&example.prompt).chain(example.completions());
        let messages = texts.filter_map(Text::as_conversation).flatten();
        let mut said = messages.filter_map(Message::text);
        let token = said.find_map(|said| special.iter().find(|token| said.contains(*token)));
        count += usize::from(token.is_some());
        found = found.or(token);
    }
    let token = found?;
    Some(format!(
        "{count} rows say special tokens of the model, such as `{token}`: was a template applied \
         before? --plain takes text as it stands"
    ))
}
