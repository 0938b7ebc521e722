use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::columns::{has_meaning, is_other_transcript, is_written_message, list};
use super::error::line_suffix;
use super::example::Example;
use super::label::sealed::LabelRef;
use super::message::{Message, Text, is_known_role};
use super::truncate::{Cut, Reason};
use crate::tokens::Sequence;

/// A row that was left out of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dropped {
    /// Index of the row in the dataset of texts.
    pub index: usize,
    /// Line of the row in the file, if it comes from one.
    pub line: Option<usize>,
    /// The reason why it was left out.
    pub reason: Reason,
}

/// The least, the most and the mean of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct Spread {
    /// The least number; 0 of none.
    pub min: f64,
    /// The greatest number; 0 of none.
    pub max: f64,
    /// The sum of the numbers.
    pub sum: f64,
    /// The number of numbers.
    pub count: usize,
}

impl Spread {
    fn add(&mut self, number: f64) {
        if self.count == 0 {
            (self.min, self.max) = (number, number);
        }
        self.min = self.min.min(number);
        self.max = self.max.max(number);
        self.sum += number;
        self.count += 1;
    }

    /// The mean of the numbers; 0 of none.
    pub fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}, mean {:.1}", self.min, self.max, self.mean())
    }
}

/// The last token of most completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct End {
    /// The id of the token.
    pub id: u32,
    /// The number of completions that end with it.
    pub count: usize,
    /// The number of completions that end with another one.
    pub others: usize,
}

/// The report of a dataset that was tokenized and truncated: what it holds, and what looks wrong in
/// it. `Display` prints it; nothing that it mentions is an error.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Report {
    /// The number of rows that are kept.
    pub kept: usize,
    /// The rows that are not kept, in order.
    pub dropped: Vec<Dropped>,
    /// The number of kept prompts that lost their middle.
    pub shortened_prompts: usize,
    /// The number of kept completions that lost their end.
    pub shortened_completions: usize,
    /// Lengths of the kept prompts, in tokens.
    pub prompts: Spread,
    /// Lengths of the kept completions, in tokens, by their place in the example: chosen and
    /// rejected of pairs. Of ranked lists, all share the first place.
    pub completions: Vec<Spread>,
    /// Tokens of the kept completions that count, in the same order.
    pub counted: Vec<Spread>,
    /// The number of desirable and of undesirable completions, of unpaired ones.
    pub classes: Option<(usize, usize)>,
    /// The number of pairs whose chosen completion has more tokens that count, and of pairs whose
    /// rejected one has more. If the two numbers are far apart, a model can learn length instead of
    /// preference.
    pub longer: Option<(usize, usize)>,
    /// Best score less worst, of ranked lists.
    pub score_gaps: Option<Spread>,
    /// The number of kept pairs whose completions have the same tokens that count: they teach
    /// nothing.
    pub identical_pairs: usize,
    /// The number of kept lists in which candidates share a score, of all of them or of some.
    pub tied_lists: usize,
    /// The number of kept lists without an order: all scores are the same, or there is one candidate.
    pub unordered_lists: usize,
    /// The number of prompts that have other last tokens once a completion follows: tokens merge,
    /// or the template opens an answer in another way than it shows it. The completion begins at
    /// the first token that differs.
    pub moved_starts: usize,
    /// The most tokens that a prompt gave away for this reason.
    pub moved_tokens: usize,
    /// The number of messages of the assistant whose last tokens, four at most, are others once a
    /// message follows: an end of sequence that only the last one has. Those tokens do not count.
    pub moved_ends: usize,
    /// The number of prompts that begin with the same token twice: a beginning of sequence of the
    /// template and one of the tokenizer.
    pub doubled_starts: usize,
    /// The number of completions that begin with the first token of their prompt: one more
    /// beginning of sequence, or a prompt that the completion repeats.
    pub restarted_completions: usize,
    /// The number of completions that begin with the last two tokens of their prompt, or more of
    /// them: an answer that is opened twice.
    pub reopened_completions: usize,
    /// The last token of most completions before they are shortened; `None` without any.
    pub end: Option<End>,
    /// The number of prompts that begin with a system message.
    pub system_prompts: usize,
    /// The number of prompts that end with a message of the assistant: a conversation that holds
    /// the answer, or the beginning of one.
    pub answered_prompts: usize,
    /// The number of messages of each role that chat templates seldom know.
    pub other_roles: BTreeMap<String, usize>,
    /// The columns that the format has no use for, and the number of rows that have them. Of a
    /// conversation, `tools` and `chat_template_kwargs` are not among them.
    pub unread_columns: BTreeMap<String, usize>,
    /// Those of the unread columns that may be meant for the model, and the number of rows where
    /// they look so: a text of two words at least, messages, or a name such as `question`,
    /// `documents`, `images` or `winner`.
    pub unread_texts: BTreeMap<String, usize>,
    /// The number of prompts and completions that are a string of JSON, or of Python, with messages
    /// in it: the model learns its brackets.
    pub written_messages: usize,
    /// The number of prompts and completions that look like transcripts by other marks than
    /// `Human:` and `Assistant:`, such as `### Human:`, `[INST]` or `User:`. They stay one text.
    pub other_transcripts: usize,
}

/// The columns that a chat template is given.
const TEMPLATE_COLUMNS: [&str; 2] = ["tools", "chat_template_kwargs"];

/// An example as token ids, whole and shortened.
pub(super) struct EncodedExample {
    /// The prompt alone.
    pub alone: Vec<u32>,
    /// The prompt up to where the completions begin, with each of them.
    pub whole: Vec<Sequence>,
    /// The same once it was shortened.
    pub shortened: Vec<Sequence>,
    /// The parts that were cut.
    pub cut: Cut,
    /// Messages that end otherwise once another one follows.
    pub moved_ends: usize,
}

/// Counts of last tokens.
#[derive(Default)]
pub(super) struct Ends(HashMap<u32, usize>);

impl Ends {
    /// The most frequent one, of equal ones the smallest.
    pub(super) fn most(&self) -> Option<End> {
        let total: usize = self.0.values().sum();
        let most = self
            .0
            .iter()
            .max_by_key(|(id, count)| (**count, std::cmp::Reverse(**id)));
        most.map(|(&id, &count)| End {
            id,
            count,
            others: total - count,
        })
    }
}

impl Report {
    /// Looks at the row of an example, whether it is kept or not: its columns that are not read,
    /// and its messages.
    pub fn read<L>(&mut self, example: &Example<Text, L>) {
        let prompt = example.prompt.as_conversation();
        let of_template = |name: &str| TEMPLATE_COLUMNS.contains(&name);
        for (name, value) in example.columns.iter() {
            if value.is_null() || (prompt.is_some() && of_template(name)) {
                continue;
            }
            *self.unread_columns.entry(name.into()).or_default() += 1;
            if has_meaning(name, value) || of_template(name) {
                *self.unread_texts.entry(name.into()).or_default() += 1;
            }
        }
        for text in std::iter::once(&example.prompt).chain(example.completions()) {
            let said = match text {
                Text::Plain(text) => vec![Cow::Borrowed(text.as_str())],
                Text::Conversation(messages) => messages.iter().filter_map(Message::text).collect(),
            };
            let any = |is: fn(&str) -> bool| usize::from(said.iter().any(|said| is(said)));
            self.written_messages += any(is_written_message);
            self.other_transcripts += any(is_other_transcript);
        }
        let Some(prompt) = prompt else {
            return;
        };
        let is = |message: Option<&_>, is: fn(&_) -> bool| usize::from(message.is_some_and(is));
        self.system_prompts += is(prompt.first(), Message::is_system);
        self.answered_prompts += is(prompt.last(), Message::is_assistant);
        let completions = example.completions().iter();
        let messages = completions.filter_map(Text::as_conversation).flatten();
        for message in prompt.iter().chain(messages) {
            if !is_known_role(&message.role) {
                *self.other_roles.entry(message.role.clone()).or_default() += 1;
            }
        }
    }

    /// Looks at an example that is kept, before it was shortened.
    pub(super) fn look(&mut self, example: &EncodedExample, ends: &mut Ends) {
        let Some(prompt) = example.whole.first().map(Sequence::prompt) else {
            return;
        };
        let moved = example.alone.len() - prompt.len();
        self.moved_starts += usize::from(moved > 0);
        self.moved_tokens = self.moved_tokens.max(moved);
        self.moved_ends += example.moved_ends;
        self.doubled_starts += usize::from(prompt.len() > 1 && prompt[0] == prompt[1]);
        for sequence in &example.whole {
            let completion = sequence.completion();
            let restarts = completion.first() == prompt.first();
            self.restarted_completions += usize::from(restarts);
            self.reopened_completions += usize::from(reopens(prompt, completion));
            if let Some(&last) = completion.last() {
                *ends.0.entry(last).or_default() += 1;
            }
        }
    }

    /// Counts an example that is kept, as it was shortened.
    pub(super) fn keep(&mut self, label: &LabelRef<'_>, example: &EncodedExample) {
        self.kept += 1;
        self.shortened_prompts += usize::from(example.cut.prompt);
        self.shortened_completions += example.cut.completions;
        let prompt = example.shortened.first().map_or(0, |s| s.prompt().len());
        self.prompts.add(prompt as f64);
        match label {
            LabelRef::Preference => self.pair(&example.shortened),
            LabelRef::Desirable(desirable) => {
                let classes = self.classes.get_or_insert((0, 0));
                *if *desirable {
                    &mut classes.0
                } else {
                    &mut classes.1
                } += 1;
            }
            LabelRef::Scores(scores) => self.list(scores),
            LabelRef::Demonstration => {}
        }
        let places = match label {
            LabelRef::Scores(_) => 1,
            _ => example.shortened.len(),
        };
        self.completions.resize(places, Spread::default());
        self.counted.resize(places, Spread::default());
        for (i, sequence) in example.shortened.iter().enumerate() {
            let place = i.min(places - 1);
            self.completions[place].add(sequence.completion().len() as f64);
            self.counted[place].add(sequence.length() as f64);
        }
    }

    fn pair(&mut self, sequences: &[Sequence]) {
        let [chosen, rejected] = sequences else {
            unreachable!("a pair has two completions");
        };
        self.identical_pairs += usize::from(counted(chosen).eq(counted(rejected)));
        let (longer, shorter) = self.longer.get_or_insert((0, 0));
        *longer += usize::from(chosen.length() > rejected.length());
        *shorter += usize::from(chosen.length() < rejected.length());
    }

    fn list(&mut self, scores: &[f64]) {
        let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let worst = scores.iter().copied().fold(f64::INFINITY, f64::min);
        let mut sorted = scores.to_vec();
        sorted.sort_by(f64::total_cmp);
        self.tied_lists += usize::from(sorted.windows(2).any(|pair| pair[0] == pair[1]));
        self.unordered_lists += usize::from(best == worst);
        self.score_gaps.get_or_insert_default().add(best - worst);
    }
}

/// The tokens of a completion that count.
fn counted(sequence: &Sequence) -> impl Iterator<Item = u32> {
    let counts = |place: usize| sequence.counted().is_none_or(|marks| marks[place]);
    let ids = sequence.completion().iter().enumerate();
    ids.filter(move |(place, _)| counts(*place))
        .map(|(_, id)| *id)
}

/// Whether a completion begins with at least two of the tokens that its prompt ends with.
fn reopens(prompt: &[u32], completion: &[u32]) -> bool {
    // As long as any template's opening.
    const LONGEST: usize = 16;
    (2..=LONGEST.min(prompt.len()).min(completion.len()))
        .any(|n| prompt.ends_with(&completion[..n]))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dropped = self.dropped.len();
        writeln!(f, "rows: {} kept, {dropped} dropped", self.kept)?;
        for row in &self.dropped {
            let line = line_suffix(row.line);
            writeln!(f, "  row {}{line}: {}", row.index, row.reason)?;
        }
        let (prompts, completions) = (self.shortened_prompts, self.shortened_completions);
        writeln!(f, "shortened: {prompts} prompts, {completions} completions")?;
        writeln!(f, "tokens of prompts: {}", self.prompts)?;
        for (place, (all, counted)) in self.completions.iter().zip(&self.counted).enumerate() {
            writeln!(f, "tokens of completions [{place}]: {all}")?;
            if all != counted {
                writeln!(f, "  that count: {counted}")?;
            }
        }
        if let Some((desirable, undesirable)) = self.classes {
            writeln!(f, "desirable: {desirable}, undesirable: {undesirable}")?;
        }
        if let Some((chosen, rejected)) = self.longer {
            writeln!(f, "longer side: {chosen} chosen, {rejected} rejected")?;
        }
        if let Some(gaps) = self.score_gaps {
            writeln!(f, "best score less worst: {gaps}")?;
        }
        if self.tied_lists > 0 {
            writeln!(f, "lists with equal scores: {}", self.tied_lists)?;
        }
        if self.system_prompts > 0 {
            writeln!(f, "prompts with a system message: {}", self.system_prompts)?;
        }
        if !self.unread_columns.is_empty() {
            let names = list(self.unread_columns.keys().map(String::as_str));
            writeln!(f, "columns that are not read: {names}")?;
        }
        if !self.unread_texts.is_empty() {
            let names = list(self.unread_texts.keys().map(String::as_str));
            writeln!(f, "look: the model sees nothing of the columns {names}")?;
        }
        for (role, count) in &self.other_roles {
            let what = "which chat templates seldom know";
            writeln!(f, "look: {count} messages of the role `{role}`, {what}")?;
        }
        let mut look = |count: usize, what: &str| match count {
            0 => Ok(()),
            count => writeln!(f, "look: {count} {what}"),
        };
        look(
            self.identical_pairs,
            "pairs whose completions are the same in what counts",
        )?;
        look(self.unordered_lists, "lists without an order")?;
        look(
            self.written_messages,
            "strings that look like messages in JSON: parse them, and write lists",
        )?;
        look(
            self.other_transcripts,
            "strings that look like transcripts with marks that are not read: make messages of them",
        )?;
        let moved = format!(
            "prompts that end otherwise before a completion, by {} tokens at most",
            self.moved_tokens
        );
        look(self.moved_starts, &moved)?;
        look(
            self.moved_ends,
            "messages of the assistant that end otherwise before another message",
        )?;
        look(
            self.answered_prompts,
            "prompts that end with a message of the assistant",
        )?;
        look(
            self.doubled_starts,
            "prompts that begin with one token twice",
        )?;
        look(
            self.restarted_completions,
            "completions that begin as their prompt does",
        )?;
        look(
            self.reopened_completions,
            "completions that begin as their prompt ends",
        )?;
        if let Some(End { id, count, others }) = self.end {
            let all = count + others;
            look(
                others,
                &format!("of {all} completions end with another token than most, which is {id}"),
            )?;
        }
        Ok(())
    }
}
