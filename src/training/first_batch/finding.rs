use std::fmt;

use serde::Serialize;

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It may be meant so: look at it.
    Warning,
    /// The numbers of this run are not what their names say.
    Error,
}

/// Which model a [`Finding`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The model that trains.
    Policy,
    /// The frozen one.
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
    /// Of policy and reference as they are.
    pub found: f64,
    /// Of the reference on both sides: ln 2 for DPO.
    pub expected: f64,
}

/// Something that is wrong with a first batch, or looks so. `Display` says what, by how much, and
/// what to do.
///
/// Rows are counted from 0 in the order of the tensors; pair `i` of `n` is rows `i` and `n + i`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// Ids that no embedding has. The models were not called.
    OutsideVocabulary {
        /// How many tokens.
        tokens: usize,
        /// The first of them.
        id: i64,
        /// Its row.
        row: usize,
        /// Its position.
        position: usize,
        /// Words of the vocabulary.
        vocab: usize,
    },
    /// Rows of which no token counts: their log-probability is 0, which looks like certainty.
    NothingCounts {
        /// Which rows.
        rows: Vec<usize>,
        /// Of how many.
        of: usize,
    },
    /// Rows of which every token counts, the prompt's as well.
    EverythingCounts {
        /// Which rows.
        rows: Vec<usize>,
        /// Of how many.
        of: usize,
    },
    /// Padding that the completion mask counts.
    PaddingCounts {
        /// How many tokens of padding count.
        tokens: usize,
        /// In which rows.
        rows: Vec<usize>,
        /// Of how many.
        of: usize,
    },
    /// Pairs whose sides are the same tokens: their loss has no gradient.
    IdenticalSides {
        /// Which pairs.
        pairs: Vec<usize>,
        /// Of how many.
        of: usize,
    },
    /// Pairs whose sides do not have the same prompt.
    PromptsDiffer {
        /// Which pairs.
        pairs: Vec<usize>,
        /// Of how many.
        of: usize,
    },
    /// The longer completion is the better one, or the worse one, too often for chance.
    LengthTellsLabel {
        /// The share of comparisons in which the better one is longer; of equal lengths, half.
        share: f64,
        /// How likely such a share, or a more extreme one, is without any relation.
        p_value: f64,
    },
    /// A LoRA adapter was expected, and the model has none.
    NoAdapter,
    /// No gradient flows out of the policy's log-probabilities.
    NoGradient,
    /// Log-probabilities that are NaN or infinite.
    NotFinite {
        /// Whose.
        side: Side,
        /// Of which rows.
        rows: Vec<usize>,
        /// Of how many.
        of: usize,
    },
    /// Log-probabilities above 0, which nothing has.
    AboveZero {
        /// Whose.
        side: Side,
        /// The row with the largest one.
        row: usize,
        /// Its log-probability, nats.
        log_prob: f64,
    },
    /// The model sums another number of tokens than the completion mask counts.
    CountsOtherTokens {
        /// Which model.
        side: Side,
        /// The first such row.
        row: usize,
        /// Tokens that the model summed.
        found: usize,
        /// Tokens that the mask counts, after the first one.
        expected: usize,
    },
    /// Two passes over the same batch differ.
    Random {
        /// Which model.
        side: Side,
        /// The row that differs most.
        row: usize,
        /// By how much, nats.
        difference: f64,
    },
    /// Policy and reference are not equal before the first step.
    NotAtReference {
        /// The row that differs most.
        row: usize,
        /// ℓ − ℓ° of it, nats.
        log_ratio: f64,
        /// How many rows differ.
        rows: usize,
        /// Of how many.
        of: usize,
        /// What that makes of the loss.
        loss: FirstLoss,
    },
    /// The loss is NaN or infinite even where policy and reference are equal.
    LossNotFinite {
        /// Which examples, in the order of the losses.
        examples: Vec<usize>,
        /// Of how many.
        of: usize,
    },
    /// On average, the policy finds the completions less likely than a guess does.
    WorseThanChance {
        /// Mean log-probability of a counted token, nats.
        mean: f64,
        /// That of a uniform guess: −ln(vocab).
        chance: f64,
    },
    /// A log-probability depends on which id stands in the padding.
    PaddingReaches {
        /// The row that differs most.
        row: usize,
        /// By how much, nats.
        difference: f64,
    },
    /// A row alone, without its padding, has another log-probability than in the batch.
    AloneDiffers {
        /// Which row.
        row: usize,
        /// Tokens of padding that it has in the batch.
        padding: usize,
        /// Its log-probability in the batch, nats.
        in_batch: f64,
        /// Alone, nats.
        alone: f64,
    },
    /// A log-probability depends on a token after it.
    SeesTheFuture {
        /// The row that differs most.
        row: usize,
        /// By how much, nats.
        difference: f64,
    },
    /// In packed rows, a log-probability depends on another sequence of its row.
    SeesNeighbours {
        /// The sequence that differs most.
        row: usize,
        /// By how much, nats.
        difference: f64,
    },
    /// A sequence has another log-probability in packed rows than in a row of its own.
    PackedDiffers {
        /// The sequence that differs most.
        row: usize,
        /// Its log-probability in a row of its own, nats.
        unpacked: f64,
        /// Packed, nats.
        packed: f64,
    },
}

impl Finding {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Self::IdenticalSides { pairs, of } if pairs.len() < *of => Severity::Warning,
            Self::LengthTellsLabel { .. } | Self::WorseThanChance { .. } => Severity::Warning,
            _ => Severity::Error,
        }
    }
}

impl fmt::Display for Finding {
    #[expect(clippy::too_many_lines, reason = "a sentence per finding")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutsideVocabulary {
                tokens,
                id,
                row,
                position,
                vocab,
            } => write!(
                f,
                "{} outside the vocabulary of {vocab}; the first is {id} in row {row} at position \
                 {position}. The tokenizer is not the model's, or special tokens were added after \
                 the embedding was made: resize it, or take the model's tokenizer.",
                count(*tokens, "token is", "tokens are"),
            ),
            Self::NothingCounts { rows, of } => write!(
                f,
                "No token counts in {}: their log-probability is 0, which looks like certainty. \
                 Truncation cut the completion away, or the mask is not the completion's.",
                some(rows, *of, "row"),
            ),
            Self::EverythingCounts { rows, of } => write!(
                f,
                "In {} every token counts, from the first: the prompt is scored with the \
                 completion. The completion mask must be false for the prompt.",
                some(rows, *of, "row"),
            ),
            Self::PaddingCounts { tokens, rows, of } => write!(
                f,
                "{} padding, in {}. The completion mask must be false where the padding mask is \
                 true.",
                count(*tokens, "counted token is", "counted tokens are"),
                some(rows, *of, "row"),
            ),
            Self::IdenticalSides { pairs, of } => write!(
                f,
                "Chosen and rejected are the same tokens in {}: such a pair teaches nothing. Drop \
                 it, or look whether truncation cut away where the sides differ.",
                some(pairs, *of, "pair"),
            ),
            Self::PromptsDiffer { pairs, of } => write!(
                f,
                "The rejected side has another prompt in {}. Rows must be all chosen ones, then all \
                 rejected ones in the same order, and truncation must cut both prompts alike.",
                some(pairs, *of, "pair"),
            ),
            Self::LengthTellsLabel { share, p_value } => {
                let (longer, percent) = if *share >= 0.5 {
                    ("longer", share * 100.0)
                } else {
                    ("shorter", (1.0 - share) * 100.0)
                };
                write!(
                    f,
                    "The better completion is the {longer} one in {percent:.0}% of the comparisons \
                     (by chance: p = {}). The model can learn length instead of quality. Balance \
                     the data, or take an objective that discounts length: R-DPO, LD-DPO, SamPO, or \
                     a normalisation.",
                    number(*p_value),
                )
            }
            Self::NoAdapter => f.write_str(
                "The policy has no LoRA adapter: `apply_lora` matched no weight. Compare the paths \
                 of its group with the model's parameters.",
            ),
            Self::NoGradient => f.write_str(
                "The policy's log-probabilities carry no gradient: nothing would train. Make the \
                 model on an autodiff device, and pass it neither through `valid()` nor `Frozen`.",
            ),
            Self::NotFinite { side, rows, of } => write!(
                f,
                "The {side}'s log-probability is NaN or infinite in {}. Look at the logits of a \
                 counted token: half-precision overflow, an id outside the vocabulary, a row \
                 without anything to attend to.",
                some(rows, *of, "row"),
            ),
            Self::AboveZero {
                side,
                row,
                log_prob,
            } => write!(
                f,
                "The {side}'s log-probability of row {row} is {}, above 0. These are logits or \
                 losses, not log-probabilities.",
                number(*log_prob),
            ),
            Self::CountsOtherTokens {
                side,
                row,
                found,
                expected,
            } => write!(
                f,
                "The {side} sums {} of row {row}, where the completion mask counts {expected}. Give \
                 it this mask; stored log-probabilities belong to another tokenization, template \
                 or truncation.",
                count(*found, "token", "tokens"),
            ),
            Self::Random {
                side,
                row,
                difference,
            } => write!(
                f,
                "Two passes of the {side} over the same batch differ by {} nats in row {row}: \
                 dropout is on. Set its probability to 0; preference losses compare \
                 log-probabilities that dropout moves by more than training does.",
                number(*difference),
            ),
            Self::NotAtReference {
                row,
                log_ratio,
                rows,
                of,
                loss,
            } => write!(
                f,
                "The loss is {}, and {} where policy and reference are equal: it is off by {}. \
                 Before the first step they must be equal, and differ in {rows} of {of} rows, most \
                 in row {row}: by {} nats. The reference has other weights (an adapter, another \
                 checkpoint), another number type, other tokens (template, truncation), or was \
                 computed under another padding.",
                number(loss.found),
                number(loss.expected),
                signed(loss.found - loss.expected),
                signed(*log_ratio),
            ),
            Self::LossNotFinite { examples, of } => write!(
                f,
                "The loss of {} is NaN or infinite although policy and reference are equal. Look \
                 at the columns of the batch: scores, margins, weights.",
                some(examples, *of, "example"),
            ),
            Self::WorseThanChance { mean, chance } => write!(
                f,
                "The policy gives a counted token {} nats on average; a guess among all words gives \
                 {}. Weights that were not loaded, another tokenizer, or log-probabilities that \
                 are shifted by a token look like this.",
                number(*mean),
                number(*chance),
            ),
            Self::PaddingReaches { row, difference } => write!(
                f,
                "Another id in the padding moves the log-probability of row {row} by {} nats: the \
                 model attends to padding. Give it the padding mask, or pad at the end of a causal \
                 model.",
                number(*difference),
            ),
            Self::AloneDiffers {
                row,
                padding,
                in_batch,
                alone,
            } => write!(
                f,
                "Row {row} has {} nats in the batch, where it has {}, and {} nats alone: the batch \
                 reaches it. Positions that count padding, or a layer that mixes rows, look like \
                 this; so does half precision, for which the tolerance has to be larger.",
                number(*in_batch),
                count(*padding, "token of padding", "tokens of padding"),
                number(*alone),
            ),
            Self::SeesTheFuture { row, difference } => write!(
                f,
                "Another last token moves the log-probability of what stands before it, in row \
                 {row} by {} nats: the model is not causal. Give its attention a causal mask.",
                number(*difference),
            ),
            Self::SeesNeighbours { row, difference } => write!(
                f,
                "Other tokens in one completion move the log-probability of sequence {row} by {} \
                 nats, which is packed into the same row: the model ignores the mask. Give \
                 `PackedBatch::attention_mask` to every layer; it is true where a token must not \
                 look.",
                number(*difference),
            ),
            Self::PackedDiffers {
                row,
                unpacked,
                packed,
            } => write!(
                f,
                "Sequence {row} has {} nats packed, and {} nats in a row of its own: positions that \
                 do not restart, or a mask that hides the prompt, look like this. Give the model \
                 `PackedBatch::positions`; in half precision, the tolerance has to be larger.",
                number(*packed),
                number(*unpacked),
            ),
        }
    }
}

/// What a check found, the worst first, and what it had no means to look at.
///
/// `Display` prints a line each; `Serialize` writes findings with their severity and sentence.
#[derive(Debug, Clone, PartialEq)]
pub struct Findings {
    findings: Vec<Finding>,
    not_checked: Vec<&'static str>,
}

impl Findings {
    pub(super) fn new(mut findings: Vec<Finding>, not_checked: Vec<&'static str>) -> Self {
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity()));
        Self {
            findings,
            not_checked,
        }
    }

    /// Errors, then warnings.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter()
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether an error is among them.
    pub fn has_errors(&self) -> bool {
        self.iter()
            .any(|finding| finding.severity() == Severity::Error)
    }

    /// What was not looked at, and what it would take.
    pub fn not_checked(&self) -> &[&'static str] {
        &self.not_checked
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            writeln!(f, "first batch: nothing wrong found")?;
        }
        for finding in self.iter() {
            match finding.severity() {
                Severity::Error => writeln!(f, "error: {finding}")?,
                Severity::Warning => writeln!(f, "warning: {finding}")?,
            }
        }
        for what in &self.not_checked {
            writeln!(f, "not checked: {what}")?;
        }
        Ok(())
    }
}

/// A finding as a line of a log holds it.
#[derive(Serialize)]
struct Entry<'a> {
    severity: Severity,
    message: String,
    #[serde(flatten)]
    finding: &'a Finding,
}

#[derive(Serialize)]
struct Entries<'a> {
    findings: Vec<Entry<'a>>,
    not_checked: &'a [&'static str],
}

impl Serialize for Findings {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let findings = self.iter().map(|finding| Entry {
            severity: finding.severity(),
            message: finding.to_string(),
            finding,
        });
        Entries {
            findings: findings.collect(),
            not_checked: &self.not_checked,
        }
        .serialize(serializer)
    }
}

fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// "2 of 8 rows (0, 3)".
fn some(which: &[usize], of: usize, noun: &str) -> String {
    let plural = if of == 1 { "" } else { "s" };
    format!(
        "{} of {of} {noun}{plural} ({})",
        which.len(),
        numbers(which)
    )
}

/// The first few.
fn numbers(which: &[usize]) -> String {
    const SHOWN: usize = 8;
    let first: Vec<String> = which.iter().take(SHOWN).map(usize::to_string).collect();
    let more = which.len().saturating_sub(SHOWN);
    match more {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
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
