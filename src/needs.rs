//! Needs of an objective, as data: a program asks for them before it reads a file.

use std::fmt;

/// Needs of an objective: examples, values of a model, columns, and whether a batch may be cut.
///
/// [`Objective::needs`](crate::Objective::needs) tells it of an objective over one type of batch,
/// [`ObjectiveConfig::takes`](crate::config::ObjectiveConfig::takes) of every batch that an
/// objective takes.
///
/// ```
/// use burn_preference::needs::{Examples, Values};
/// use burn_preference::AotLossConfig;
///
/// let needs = &AotLossConfig::new().takes()[0];
/// assert_eq!(needs.to_string(), "pairs, reference");
/// assert_eq!((needs.examples, needs.values), (Examples::Pairs, Values::LogRatios));
/// assert!(needs.whole_batch); // it sorts the batch
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Needs {
    /// Kind of the examples.
    pub examples: Examples,
    /// Values that the model gives.
    pub values: Values,
    /// Columns beside the batch, from the inside out.
    pub columns: Vec<ColumnKind>,
    /// True if the loss of an example depends on the rest of its batch. A step that is cut into
    /// parts then has another gradient than the whole step.
    pub whole_batch: bool,
}

impl Needs {
    /// A batch of these examples and values, without columns.
    pub fn new(examples: Examples, values: Values) -> Self {
        Self {
            examples,
            values,
            columns: Vec::new(),
            whole_batch: false,
        }
    }

    /// The same with a column more.
    pub fn with_column(mut self, column: ColumnKind) -> Self {
        self.columns.push(column);
        self
    }

    /// The same with another answer to [`whole_batch`](Self::whole_batch).
    pub fn with_whole_batch(self, whole_batch: bool) -> Self {
        Self {
            whole_batch,
            ..self
        }
    }

    /// True if the objective compares with a reference.
    pub fn has_reference(&self) -> bool {
        self.values == Values::LogRatios
    }
}

/// Prints what a batch holds: `pairs, reference, margins`.
impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let examples = self.examples;
        match self.values {
            Values::LogProbs | Values::Custom => write!(f, "{examples}")?,
            Values::LogRatios => write!(f, "{examples}, reference")?,
            Values::Rewards => write!(f, "rewards of {examples}")?,
        }
        self.columns
            .iter()
            .try_for_each(|column| write!(f, ", {column}"))
    }
}

/// Declares an enum whose `Display` prints the words beside each variant.
macro_rules! words {
    (
        $(#[$meta:meta])* pub enum $name:ident {
            $($(#[$variant_meta:meta])* $variant:ident = $words:literal,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)*
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $words,)*
                })
            }
        }
    };
}

words! {
    /// Kinds of examples.
    pub enum Examples {
        /// A chosen and a rejected completion of each prompt.
        Pairs = "pairs",
        /// Completions that are each desirable or undesirable.
        Unpaired = "unpaired completions",
        /// Completions that the model imitates.
        Demonstrations = "demonstrations",
        /// Completions that a sampler drew, with a reward among those of their prompt.
        Samples = "samples",
        /// Completions without a label, which the model unlearns.
        Completions = "completions to unlearn",
        /// Completions with a scalar score each.
        Scored = "scored completions",
        /// Several candidates of each prompt, with scores or ranks.
        Ranked = "ranked lists",
        /// Examples of a batch type outside this crate.
        Custom = "examples of your own",
    }
}

/// Values of a model, which a batch holds for each completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Values {
    /// Log-probabilities of the policy: no reference.
    LogProbs,
    /// Log-probabilities of policy and reference.
    LogRatios,
    /// Rewards of a reward model.
    Rewards,
    /// Values of a batch type outside this crate.
    Custom,
}

words! {
    /// Columns of this crate: [`WithMargin`](crate::batch::WithMargin) and so on.
    pub enum ColumnKind {
        /// Reward margins, in a [`WithMargin`](crate::batch::WithMargin) column.
        Margin = "margins",
        /// Win probabilities of the chosen completions, in a [`WithPreference`](crate::batch::WithPreference) column.
        Preference = "win probabilities",
        /// Scores of both completions, in a [`WithScores`](crate::batch::WithScores) column.
        Scores = "scores",
        /// Ties among the pairs, in a [`WithTies`](crate::batch::WithTies) column.
        Ties = "ties",
        /// Weights of the examples, in a [`WithWeights`](crate::batch::WithWeights) column.
        Weights = "weights",
        /// Sequences to imitate, in a [`WithNll`](crate::batch::WithNll) column.
        Nll = "sequences to imitate",
        /// Tokens that count in the whole step, in a [`WithStepTokens`](crate::batch::WithStepTokens) column.
        StepTokens = "tokens of the step",
        /// KL divergences of both completions, in a [`WithSequenceKl`](crate::batch::WithSequenceKl) column.
        SequenceKl = "KL per sequence",
        /// Values of the prompts, in a [`WithValue`](crate::batch::WithValue) column.
        Value = "V",
        /// KTO's reference point z₀, in a [`WithBaseline`](crate::batch::WithBaseline) column.
        Baseline = "z₀",
        /// BCO's reward shift δ, in a [`WithShift`](crate::batch::WithShift) column.
        Shift = "δ",
        /// β-DPO's mean margin M₀, in a [`WithMeanMargin`](crate::batch::WithMeanMargin) column.
        MeanMargin = "M₀",
    }
}
