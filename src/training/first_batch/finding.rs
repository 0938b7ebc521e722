use std::fmt;

use serde::Serialize;
use thiserror::Error;

/// Severity of a [`Finding`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It may be meant so: look at it.
    Warning,
    /// The numbers of this run are not what their names say.
    Error,
}

/// The model that a [`Finding`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The model that trains.
    Policy,
    /// The frozen model.
    Reference,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Policy => "policy",
            Self::Reference => "reference",
        })
    }
}

/// The mean loss of the batch, as it is and as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FirstLoss {
    /// Mean loss of policy and reference as they are.
    pub found: f64,
    /// Mean loss with the reference on both sides: ln 2 for DPO.
    pub expected: f64,
}

/// A mistake that a first batch shows, or what looks like one. `Display` says what is wrong, by how
/// much, and what to do.
///
/// Rows are counted from 0 in the order of the tensors; pair `i` of `n` is rows `i` and `n + i`.
#[derive(Debug, Clone, PartialEq, Serialize, Error)]
#[non_exhaustive]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// Ids that no embedding has. The models were not called.
    #[error(
        "{} outside the vocabulary of {vocab}; the first is {id} in row {row} at position \
         {position}. The tokenizer is not the model's, or special tokens were added after the \
         embedding was made: resize it, or take the model's tokenizer.",
        count(*tokens, "token is", "tokens are")
    )]
    OutsideVocabulary {
        /// Number of such tokens.
        tokens: usize,
        /// The id of the first one.
        id: i64,
        /// The row of the first one.
        row: usize,
        /// The position of the first one in its row.
        position: usize,
        /// Number of words of the vocabulary.
        vocab: usize,
    },
    /// Rows of which no token counts: their log-probability is 0, which looks like certainty.
    #[error(
        "No token counts in {}: their log-probability is 0, which looks like certainty. \
         Truncation cut the completion away, or the mask is not the completion's.",
        some(rows, *of, "row")
    )]
    NothingCounts {
        /// The rows without a counted token.
        rows: Vec<usize>,
        /// Number of rows in the batch.
        of: usize,
    },
    /// Rows of which every token counts, the prompt's as well.
    #[error(
        "In {} every token counts, from the first: the prompt is scored with the completion. The \
         completion mask must be false for the prompt.",
        some(rows, *of, "row")
    )]
    EverythingCounts {
        /// The rows without an uncounted token.
        rows: Vec<usize>,
        /// Number of rows in the batch.
        of: usize,
    },
    /// Padding that the completion mask counts.
    #[error(
        "{} padding, in {}. The completion mask must be false where the padding mask is true.",
        count(*tokens, "counted token is", "counted tokens are"),
        some(rows, *of, "row")
    )]
    PaddingCounts {
        /// Number of tokens that are padding and count.
        tokens: usize,
        /// The rows that have such tokens.
        rows: Vec<usize>,
        /// Number of rows in the batch.
        of: usize,
    },
    /// Pairs whose sides are the same tokens: their loss has no gradient, unless the model sees
    /// something else beside each ([`with_contexts_of`](super::FirstBatch::with_contexts_of)).
    #[error(
        "Chosen and rejected are the same tokens in {}: such a pair teaches nothing. Drop it, or \
         look whether truncation cut away where the sides differ. If the model sees another picture \
         beside each side, say `with_contexts_of`.",
        some(pairs, *of, "pair")
    )]
    IdenticalSides {
        /// The pairs whose sides are the same.
        pairs: Vec<usize>,
        /// Number of pairs in the batch.
        of: usize,
    },
    /// Pairs whose sides do not have the same prompt.
    #[error(
        "The rejected side has another prompt in {}. Rows must be all chosen ones, then all \
         rejected ones in the same order, and truncation must cut both prompts alike.",
        some(pairs, *of, "pair")
    )]
    PromptsDiffer {
        /// The pairs with two prompts.
        pairs: Vec<usize>,
        /// Number of pairs in the batch.
        of: usize,
    },
    /// The longer completion is the better one, or the worse one, too often for chance.
    #[error(
        "The better completion is the {} one in {:.0}% of the comparisons (by chance: p = {}). The \
         model can learn length instead of quality. Balance the data, or take an objective that \
         discounts length: R-DPO, LD-DPO, SamPO, or a normalisation.",
        if *share >= 0.5 { "longer" } else { "shorter" },
        100.0 * if *share >= 0.5 { *share } else { 1.0 - share },
        number(*p_value)
    )]
    LengthTellsLabel {
        /// The share of comparisons in which the better one is longer; of equal lengths, half.
        share: f64,
        /// The probability of such a share, or of a more extreme one, without any relation.
        p_value: f64,
    },
    /// A LoRA adapter was expected, and the model has none.
    #[error(
        "The policy has no LoRA adapter: `apply_lora` matched no weight. Compare the paths of its \
         group with the model's parameters."
    )]
    NoAdapter,
    /// A trainable parameter that stands in two fields of the policy: the first step parts them.
    #[error(
        "{} in more than one field of the policy; the first: `{}` is `{}` again. An optimiser moves \
         one of the two, and they part in the first step. Keep a tied weight in one field and read it \
         twice, as `LmHead::from(&self.embedding)` does; a frozen copy of the policy belongs into \
         `Frozen`.",
        count(*parameters, "trainable parameter stands", "trainable parameters stand"),
        fields[1],
        fields[0]
    )]
    SharedParameter {
        /// Number of such parameters.
        parameters: usize,
        /// The first two fields of the first one, in the order of the module.
        fields: [String; 2],
    },
    /// No gradient flows out of the policy's log-probabilities.
    #[error(
        "The policy's log-probabilities carry no gradient: nothing would train. Make the model on \
         an autodiff device, and pass it neither through `valid()` nor `Frozen`, nor a clone of it \
         through `no_grad()`: clones share whether a weight trains until somebody reads it."
    )]
    NoGradient,
    /// Log-probabilities that are NaN or infinite.
    #[error(
        "The {side}'s log-probability is NaN or infinite in {}. Look at the logits of a counted \
         token: half-precision overflow, an id outside the vocabulary, a row without anything to \
         attend to.",
        some(rows, *of, "row")
    )]
    NotFinite {
        /// The model that gives them.
        side: Side,
        /// The rows that have such a log-probability.
        rows: Vec<usize>,
        /// Number of rows in the batch.
        of: usize,
    },
    /// Log-probabilities above 0, which nothing has.
    #[error(
        "The {side}'s log-probability of row {row} is {}, above 0. These are logits or losses, not \
         log-probabilities.",
        number(*log_prob)
    )]
    AboveZero {
        /// The model that gives them.
        side: Side,
        /// The row with the largest one.
        row: usize,
        /// The log-probability of this row, nats.
        log_prob: f64,
    },
    /// The model sums another number of tokens than the completion mask counts.
    #[error(
        "The {side} sums {} of row {row}, where the completion mask counts {expected}. Give it \
         this mask; stored log-probabilities belong to another tokenization, template or \
         truncation.",
        count(*found, "token", "tokens")
    )]
    CountsOtherTokens {
        /// The model that sums them.
        side: Side,
        /// The first row with another number.
        row: usize,
        /// Number of tokens that the model summed.
        found: usize,
        /// Number of tokens that the mask counts, after the first token.
        expected: usize,
    },
    /// Two passes over the same batch differ.
    #[error(
        "Two passes of the {side} over the same batch differ by {} nats in row {row}: dropout is \
         on. Set its probability to 0; preference losses compare log-probabilities that dropout \
         moves by more than training does.",
        number(*difference)
    )]
    Random {
        /// The model whose passes differ.
        side: Side,
        /// The row that differs most.
        row: usize,
        /// The difference in this row, nats.
        difference: f64,
    },
    /// Policy and reference are not equal before the first step.
    #[error(
        "The loss is {}, and {} where policy and reference are equal: it is off by {}. Before the \
         first step they must be equal, and differ in {rows} of {of} rows, most in row {row}: by \
         {} nats. The reference has other weights (an adapter, another checkpoint), another number \
         type, other tokens (template, truncation), or was computed under another padding.",
        number(loss.found),
        number(loss.expected),
        signed(loss.found - loss.expected),
        signed(*log_ratio)
    )]
    NotAtReference {
        /// The row that differs most.
        row: usize,
        /// The log-ratio ℓ − ℓ° of this row, nats.
        log_ratio: f64,
        /// Number of rows that differ.
        rows: usize,
        /// Number of rows in the batch.
        of: usize,
        /// The loss beside the one of equal models.
        loss: FirstLoss,
    },
    /// The loss is NaN or infinite even where policy and reference are equal.
    #[error(
        "The loss of {} is NaN or infinite although policy and reference are equal. Look at the \
         columns of the batch: scores, margins, weights.",
        some(examples, *of, "example")
    )]
    LossNotFinite {
        /// The examples with such a loss, in the order of the losses.
        examples: Vec<usize>,
        /// Number of examples in the batch.
        of: usize,
    },
    /// On average, the policy finds the completions less likely than a guess does.
    #[error(
        "The policy gives a counted token {} nats on average; a guess among all words gives {}. \
         Weights that were not loaded, another tokenizer, or log-probabilities that are shifted by \
         a token look like this.",
        number(*mean),
        number(*chance)
    )]
    WorseThanChance {
        /// Mean log-probability of a counted token, nats.
        mean: f64,
        /// The log-probability of a uniform guess: −ln(vocab).
        chance: f64,
    },
    /// A log-probability depends on which id stands in the padding.
    #[error(
        "Another id in the padding moves the log-probability of row {row} by {} nats: the model \
         attends to padding. Give it the padding mask, or pad at the end of a causal model.",
        number(*difference)
    )]
    PaddingReaches {
        /// The row that differs most.
        row: usize,
        /// The difference in this row, nats.
        difference: f64,
    },
    /// A row alone, without its padding, has another log-probability than in the batch.
    #[error(
        "Row {row} has {} nats in the batch, where it has {}, and {} nats alone: the batch reaches \
         it. Positions that count padding, or a layer that mixes rows, look like this; so does \
         half precision, for which the tolerance has to be larger.",
        number(*in_batch),
        count(*padding, "token of padding", "tokens of padding"),
        number(*alone)
    )]
    AloneDiffers {
        /// The row that was computed alone.
        row: usize,
        /// Number of tokens of padding that it has in the batch.
        padding: usize,
        /// The log-probability of the row in the batch, nats.
        in_batch: f64,
        /// The log-probability of the row alone, nats.
        alone: f64,
    },
    /// A log-probability depends on a token after it.
    #[error(
        "Another last token moves the log-probability of what stands before it, in row {row} by {} \
         nats: the model is not causal. Give its attention a causal mask.",
        number(*difference)
    )]
    SeesTheFuture {
        /// The row that differs most.
        row: usize,
        /// The difference in this row, nats.
        difference: f64,
    },
    /// In packed rows, a log-probability depends on another sequence of its row.
    #[error(
        "Other tokens in one completion move the log-probability of sequence {row} by {} nats, \
         which is packed into the same row: the model ignores the mask. Give \
         `PackedBatch::attention_mask` to every layer; it is true where a token must not look.",
        number(*difference)
    )]
    SeesNeighbours {
        /// The sequence that differs most.
        row: usize,
        /// The difference in this sequence, nats.
        difference: f64,
    },
    /// A sequence has another log-probability in packed rows than in a row of its own.
    #[error(
        "Sequence {row} has {} nats packed, and {} nats in a row of its own: positions that do not \
         restart, or a mask that hides the prompt, look like this. Give the model \
         `PackedBatch::positions`; in half precision, the tolerance has to be larger.",
        number(*packed),
        number(*unpacked)
    )]
    PackedDiffers {
        /// The sequence that differs most.
        row: usize,
        /// The log-probability of the sequence in a row of its own, nats.
        unpacked: f64,
        /// The log-probability of the sequence in packed rows, nats.
        packed: f64,
    },
}

impl Finding {
    /// The severity: an error, but for what may be meant so.
    pub fn severity(&self) -> Severity {
        match self {
            Self::IdenticalSides { pairs, of } if pairs.len() < *of => Severity::Warning,
            Self::LengthTellsLabel { .. } | Self::WorseThanChance { .. } => Severity::Warning,
            _ => Severity::Error,
        }
    }
}

fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// "2 of 8 rows (0, 3)", the first few of them.
fn some(which: &[usize], of: usize, noun: &str) -> String {
    const SHOWN: usize = 8;
    let first: Vec<String> = which.iter().take(SHOWN).map(usize::to_string).collect();
    let more = match which.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let (n, plural) = (which.len(), if of == 1 { "" } else { "s" });
    format!("{n} of {of} {noun}{plural} ({}{more})", first.join(", "))
}

/// Four decimals, or two digits of what has none there.
fn number(x: f64) -> String {
    if x == 0.0 || x.abs() >= 1e-3 || !x.is_finite() {
        format!("{x:.4}")
    } else {
        format!("{x:.1e}")
    }
}

fn signed(x: f64) -> String {
    let sign = if x > 0.0 { "+" } else { "" };
    format!("{sign}{}", number(x))
}
