//! Names of columns and roles, where they are not TRL's.

use burn_preference::data::{
    DataError, DemonstrationFormat, PairFormat, PromptFormat, RankedFormat, SampleFormat,
    ScoreField, UnpairedFormat,
};
use serde::Serialize;

use crate::failure::Failure;

/// Names of columns and roles. Those that are not given are TRL's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, clap::Args)]
#[command(next_help_heading = "Columns")]
pub struct ColumnNames {
    /// The column of the prompt; otherwise `prompt`.
    #[arg(long, value_name = "NAME")]
    pub prompt_column: Option<String>,
    /// The column of a system message, which begins the prompt; otherwise `system`, if there is one.
    /// An empty name reads none.
    #[arg(long, value_name = "NAME")]
    pub system_column: Option<String>,
    /// The column of a pair's preferred answer; otherwise `chosen`.
    #[arg(long, value_name = "NAME")]
    pub chosen_column: Option<String>,
    /// The column of a pair's other answer; otherwise `rejected`.
    #[arg(long, value_name = "NAME")]
    pub rejected_column: Option<String>,
    /// The column of an unpaired answer, or of an answer to imitate; otherwise `completion`.
    #[arg(long, value_name = "NAME")]
    pub completion_column: Option<String>,
    /// The column that says whether an unpaired answer is desirable; otherwise `label`.
    #[arg(long, value_name = "NAME")]
    pub label_column: Option<String>,
    /// The column of a whole conversation to imitate; otherwise `messages`.
    #[arg(long, value_name = "NAME")]
    pub messages_column: Option<String>,
    /// The column of a list of answers; otherwise `responses`.
    #[arg(long, value_name = "NAME")]
    pub responses_column: Option<String>,
    /// The column of their scores; otherwise `scores`.
    #[arg(long, value_name = "NAME")]
    pub scores_column: Option<String>,
    /// Pairs have no prompt: it is what both strings begin with, whatever other columns there are.
    #[arg(long, conflicts_with = "prompt_column")]
    pub implicit_prompt: bool,
    /// Other names of roles in messages, by commas: prompter=user,bot=assistant. `human`, `gpt`,
    /// `Human`, `User`, `Assistant` and `System` are known.
    #[arg(long, value_name = "NAME=ROLE", value_delimiter = ',', value_parser = role)]
    pub roles: Vec<(String, String)>,
}

/// Columns that only the sampler can write.
pub(crate) const OF_SAMPLER: [&str; 3] = ["prompt_ids", "response_ids", "response_log_probs"];

fn role(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, role)) if !name.is_empty() && !role.is_empty() => {
            Ok((name.into(), role.into()))
        }
        _ => Err("a name and the role that it stands for, such as prompter=user".into()),
    }
}

impl ColumnNames {
    /// The format of prompts alone. `as_conversation`: strings become messages.
    ///
    /// # Errors
    ///
    /// A column is named that such rows do not have.
    pub fn prompts(&self, as_conversation: bool) -> Result<PromptFormat, Failure> {
        self.check("prompts alone", &[])?;
        Ok(self.prompt(as_conversation))
    }

    /// The format of pairs.
    ///
    /// # Errors
    ///
    /// As [`prompts`](Self::prompts).
    pub fn pairs(&self, as_conversation: bool) -> Result<PairFormat, Failure> {
        let used = ["--chosen-column", "--rejected-column", "--implicit-prompt"];
        self.check("pairs", &used)?;
        let [chosen, rejected] = self.sides().map(str::to_owned);
        Ok(PairFormat {
            prompt: self.prompt(as_conversation),
            implicit_prompt: self.implicit_prompt,
            chosen,
            rejected,
        })
    }

    /// The format of unpaired completions.
    ///
    /// # Errors
    ///
    /// As [`prompts`](Self::prompts).
    pub fn unpaired(&self, as_conversation: bool) -> Result<UnpairedFormat, Failure> {
        let used = ["--completion-column", "--label-column"];
        self.check("unpaired completions", &used)?;
        Ok(UnpairedFormat {
            prompt: self.prompt(as_conversation),
            completion: self.completion().to_owned(),
            label: self.label().to_owned(),
        })
    }

    /// The format of demonstrations.
    ///
    /// # Errors
    ///
    /// As [`prompts`](Self::prompts).
    pub fn demonstrations(&self, as_conversation: bool) -> Result<DemonstrationFormat, Failure> {
        let used = ["--completion-column", "--messages-column", "--label-column"];
        self.check("demonstrations", &used)?;
        Ok(DemonstrationFormat {
            prompt: self.prompt(as_conversation),
            completion: self.completion().to_owned(),
            messages: self.messages().to_owned(),
        })
    }

    /// The format of lists with scores.
    ///
    /// # Errors
    ///
    /// As [`prompts`](Self::prompts).
    pub fn ranked(&self, as_conversation: bool) -> Result<RankedFormat, Failure> {
        self.check("lists", &["--responses-column", "--scores-column"])?;
        let usual = RankedFormat::default();
        Ok(RankedFormat {
            prompt: self.prompt(as_conversation),
            responses: self.responses().to_owned(),
            order: match &self.scores_column {
                Some(name) => ScoreField::Scores(name.clone()),
                None => usual.order,
            },
        })
    }

    /// The format of groups of samples.
    ///
    /// # Errors
    ///
    /// As [`prompts`](Self::prompts).
    pub fn groups(&self, as_conversation: bool) -> Result<SampleFormat, Failure> {
        self.check("samples", &["--responses-column", "--scores-column"])?;
        let usual = SampleFormat::default();
        Ok(SampleFormat {
            prompt: self.prompt(as_conversation),
            responses: self.responses().to_owned(),
            rewards: self.scores_column.clone().unwrap_or(usual.rewards),
            ..usual
        })
    }

    /// The columns of a pair's answers.
    pub(crate) fn sides(&self) -> [&str; 2] {
        [
            self.chosen_column.as_deref().unwrap_or("chosen"),
            self.rejected_column.as_deref().unwrap_or("rejected"),
        ]
    }

    /// The column of an unpaired completion.
    pub(crate) fn completion(&self) -> &str {
        self.completion_column.as_deref().unwrap_or("completion")
    }

    /// The column of a whole conversation.
    pub(crate) fn messages(&self) -> &str {
        self.messages_column.as_deref().unwrap_or("messages")
    }

    /// The column of the label of unpaired completions.
    pub(crate) fn label(&self) -> &str {
        self.label_column.as_deref().unwrap_or("label")
    }

    /// The column of a list of answers.
    pub(crate) fn responses(&self) -> &str {
        self.responses_column.as_deref().unwrap_or("responses")
    }

    fn prompt(&self, as_conversation: bool) -> PromptFormat {
        let mut format = PromptFormat {
            as_conversation,
            ..PromptFormat::default()
        };
        if let Some(name) = &self.prompt_column {
            format.prompt.clone_from(name);
        }
        if let Some(name) = &self.system_column {
            format.system = Some(name.clone()).filter(|name| !name.is_empty());
        }
        format.roles.extend(self.roles.iter().cloned());
        format
    }

    /// That nothing is named which rows of this kind do not have.
    fn check(&self, rows: &str, used: &[&str]) -> Result<(), Failure> {
        let given = [
            ("--chosen-column", self.chosen_column.is_some()),
            ("--rejected-column", self.rejected_column.is_some()),
            ("--completion-column", self.completion_column.is_some()),
            ("--label-column", self.label_column.is_some()),
            ("--messages-column", self.messages_column.is_some()),
            ("--responses-column", self.responses_column.is_some()),
            ("--scores-column", self.scores_column.is_some()),
            ("--implicit-prompt", self.implicit_prompt),
        ];
        let unused = |(name, given): &(&str, bool)| *given && !used.contains(name);
        match given.into_iter().find(unused) {
            Some((name, _)) => {
                Err(format!("{name}: {rows} are read, and it says nothing of them").into())
            }
            None => Ok(()),
        }
    }

    /// The error of a row with the option that helps.
    pub(crate) fn explain(&self, error: DataError) -> Failure {
        if let DataError::LongLine { path, line, max } = &error {
            let (path, help) = (path.display(), "--skip-errors leaves it out");
            let shorter = "without columns that are not read it is shorter: \
                           `jq -c '{prompt, chosen, rejected}' FILE > SHORTER.jsonl`";
            return format!("{path}:{line}: longer than {max} bytes ({help}; {shorter})").into();
        }
        let DataError::Row { source, .. } = &error else {
            return error.into();
        };
        let format = self.prompt(false);
        let (field, is_missing) = (source.field(), source.found().starts_with("nothing"));
        let is_null = source.found() == "null";
        let help = if field == format.prompt && (is_missing || is_null) {
            "--prompt-column NAME reads it from another column; of pairs, --implicit-prompt says that \
             there is none, and --plain that strings stay text"
        } else if is_missing && OF_SAMPLER.contains(&field) {
            "--sample N --every-answer writes it, and the model that drew the answers has to"
        } else if is_missing && !field.contains(['.', '[']) {
            "--chosen-column, --rejected-column and the like name other columns"
        } else if format.system.as_deref() == Some(field) {
            "--system-column NAME reads another column, --system-column '' none"
        } else if field.strip_suffix(".from").is_some() {
            "--roles NAME=ROLE says what a name stands for"
        } else {
            return error.into();
        };
        format!("{error} ({help})").into()
    }
}
