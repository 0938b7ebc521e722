//! A check of the first batch, in words: why the loss is not ln 2.
//!
//! Most questions about a preference run that does not learn have one of a dozen answers, and one
//! batch shows which. [`FirstBatch`] calls your model a few times on that batch and on variants of
//! it, and tells what it [found](Finding): dropout that is on, a reference that is not the policy's
//! start, masks that count too much or nothing, padding that reaches the numbers, a model that
//! sees the future. It reads everything back, so call it once, before training.
//!
//! ```
//! use burn::module::Module;
//! use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
//! use burn::tensor::{Device, Int, Tensor};
//! use burn_preference::training::first_batch::{Finding, FirstBatch};
//! use burn_preference::tokens::{Padding, Sequence, TokenBatch};
//! use burn_preference::{DpoLossConfig, Frozen, InvalidInput, Objective, Pair};
//!
//! #[derive(Module, Debug)]
//! struct Model {
//!     embedding: Embedding,
//!     head: Linear,
//! }
//!
//! impl Model {
//!     fn new(device: &Device) -> Self {
//!         Self {
//!             embedding: EmbeddingConfig::new(9, 4).init(device),
//!             head: LinearConfig::new(4, 9).init(device),
//!         }
//!     }
//!
//!     fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
//!         self.head.forward(self.embedding.forward(tokens))
//!     }
//! }
//!
//! let device = Device::default().autodiff();
//! let policy = Model::new(&device);
//! let reference = Frozen::new(&Model::new(&device)); // of other weights: a mistake
//!
//! // One pair: the chosen row, then the rejected one.
//! let rows = vec![Sequence::new(&[0], &[1, 2]), Sequence::new(&[0], &[3, 4, 8])];
//! let batch = TokenBatch::new(rows, Padding::new(7), &Device::default())?;
//! let dpo = DpoLossConfig::new().init();
//! let findings = FirstBatch::new(&batch)?.pairs()?.with_vocab(9).check_against(
//!     |rows| rows.log_probs(&policy, Model::forward),
//!     |rows| rows.log_probs(reference.model(), Model::forward),
//!     |y| Ok(dpo.forward(Pair::from_concatenated(&y)?).losses()),
//! )?;
//! // "error: The loss is …, and 0.6931 where policy and reference are equal: it is off by …"
//! print!("{findings}");
//! assert!(findings.iter().any(|found| matches!(found, Finding::NotAtReference { .. })));
//! # Ok::<(), InvalidInput>(())
//! ```

mod finding;
mod host;
mod length;
mod packed;

use burn::module::Module;
use burn::tensor::{Bool, Int, Tensor, TensorData};

use crate::error::{InvalidHyperparameter, InvalidInput};
use crate::hyperparameter::positive;
use crate::log_probs::{RelativeLogProbs, SequenceLogProbs};
use crate::reference::Frozen;
use crate::tokens::TokenTensors;
pub use finding::{Finding, Findings, FirstLoss, Severity, Side};
use host::Host;

/// What the rows are labelled with.
#[derive(Debug, Clone)]
enum Labels {
    None,
    Pairs,
    Thumbs(Vec<bool>),
    /// Which rows hold a candidate.
    Lists(Vec<bool>),
}

/// One batch, and what is known about it: the check before training.
///
/// | what it says | from | needs |
/// |---|---|---|
/// | [`NothingCounts`](Finding::NothingCounts), [`EverythingCounts`](Finding::EverythingCounts), [`PaddingCounts`](Finding::PaddingCounts) | the masks | |
/// | [`OutsideVocabulary`](Finding::OutsideVocabulary) | ids | [`with_vocab`](Self::with_vocab) |
/// | [`WorseThanChance`](Finding::WorseThanChance) | the policy | the same, and 32 counted tokens |
/// | [`IdenticalSides`](Finding::IdenticalSides), [`PromptsDiffer`](Finding::PromptsDiffer) | pairs | [`pairs`](Self::pairs) |
/// | [`LengthTellsLabel`](Finding::LengthTellsLabel) | lengths and labels: p < 1%, which takes 8 pairs at least | [`pairs`](Self::pairs) or [`thumbs`](Self::thumbs) |
/// | [`NoAdapter`](Finding::NoAdapter) | the policy's parameters | [`with_adapters_of`](Self::with_adapters_of) |
/// | [`NoGradient`](Finding::NoGradient), [`Random`](Finding::Random) | two passes | |
/// | [`NotFinite`](Finding::NotFinite), [`AboveZero`](Finding::AboveZero), [`CountsOtherTokens`](Finding::CountsOtherTokens) | the same | |
/// | [`NotAtReference`](Finding::NotAtReference), [`LossNotFinite`](Finding::LossNotFinite) | a pass of policy and reference | [`check_against`](Self::check_against) |
/// | [`PaddingReaches`](Finding::PaddingReaches) | a pass with another id in the padding | a row with padding |
/// | [`AloneDiffers`](Finding::AloneDiffers) | the row with most padding, alone and without it | two rows, or padding |
/// | [`SeesTheFuture`](Finding::SeesTheFuture) | two passes with another last token | a row with two counted tokens |
/// | [`SeesNeighbours`](Finding::SeesNeighbours), [`PackedDiffers`](Finding::PackedDiffers) | packed rows | [`check_packed`](Self::check_packed) |
///
/// What follows from one finding is not reported again: a policy with dropout is not also told
/// that it differs from its reference. What a check had no means to look at stands in
/// [`Findings::not_checked`].
///
/// The best batch has rows of unequal lengths, so that there is padding, and eight pairs or more.
#[derive(Debug, Clone)]
pub struct FirstBatch {
    rows: TokenTensors,
    labels: Labels,
    vocab: Option<usize>,
    adapters: Option<usize>,
    tolerance: f64,
}

impl FirstBatch {
    /// Of the `rows` of a collated batch, or of [`TokenTensors`] of your own.
    ///
    /// # Errors
    ///
    /// There is no row, or fewer than two tokens; or shapes or devices differ.
    pub fn new(rows: impl Into<TokenTensors>) -> Result<Self, InvalidInput> {
        let TokenTensors {
            ids,
            completion_mask,
            pad_mask,
        } = rows.into();
        let [rows, time] = ids.dims();
        if rows == 0 || time < 2 {
            let found = format!("shape {:?}", ids.dims());
            return Err(InvalidInput::new("ids", "rows ≥ 1 and time ≥ 2", found));
        }
        Ok(Self {
            // Fields may have been assigned since.
            rows: TokenTensors::new(ids, completion_mask, pad_mask)?,
            labels: Labels::None,
            vocab: None,
            adapters: None,
            tolerance: 1e-4,
        })
    }

    /// The rows are pairs: all chosen completions, then all rejected ones.
    ///
    /// # Errors
    ///
    /// The number of rows is odd.
    pub fn pairs(self) -> Result<Self, InvalidInput> {
        let [rows, _] = self.rows.ids.dims();
        if rows % 2 != 0 {
            let expected = "an even number of rows: chosen, then rejected";
            return Err(InvalidInput::new("rows", expected, rows));
        }
        Ok(Self {
            labels: Labels::Pairs,
            ..self
        })
    }

    /// The rows have a thumb each, true for up.
    ///
    /// # Errors
    ///
    /// `desirable` is not `[rows]`.
    pub fn thumbs(self, desirable: &Tensor<1, Bool>) -> Result<Self, InvalidInput> {
        let [rows, _] = self.rows.ids.dims();
        InvalidInput::check_shape("desirable", &[rows].into(), &desirable.shape())?;
        let up = desirable.to_data().iter::<bool>().collect();
        Ok(Self {
            labels: Labels::Thumbs(up),
            ..self
        })
    }

    /// The rows are lists of candidates, some of which may be absent: `present` as a batch of lists
    /// has it. An absent row need not count anything.
    ///
    /// # Errors
    ///
    /// `present` is not `[lists, candidates]` of as many rows.
    pub fn lists(self, present: &Tensor<2, Bool>) -> Result<Self, InvalidInput> {
        let [rows, _] = self.rows.ids.dims();
        let [lists, candidates] = present.dims();
        if lists * candidates != rows {
            let expected = format!("[lists, candidates] of {rows} rows");
            let found = format!("shape {:?}", present.dims());
            return Err(InvalidInput::new("present", expected, found));
        }
        let present = present.to_data().iter::<bool>().collect();
        Ok(Self {
            labels: Labels::Lists(present),
            ..self
        })
    }

    /// Ids are those of `vocab` words: the rows of the model's embedding.
    pub fn with_vocab(self, vocab: usize) -> Self {
        Self {
            vocab: Some(vocab),
            ..self
        }
    }

    /// The policy is meant to have LoRA adapters: looks whether `policy` has any.
    pub fn with_adapters_of<M: Module>(self, policy: &M) -> Self {
        let adapters = Frozen::without_adapters(policy).map_or(0, |(_, count)| count);
        Self {
            adapters: Some(adapters),
            ..self
        }
    }

    /// By how many nats, times the square root of its tokens, a completion's log-probability may
    /// differ between passes that should be equal. The default, 1e-4, is for f32: a hundred times
    /// what a product of another shape rounds otherwise. Models in bf16 or f16, and products in
    /// TF32, want about 0.05.
    ///
    /// # Errors
    ///
    /// `tolerance` is not a finite number > 0.
    pub fn with_tolerance(self, tolerance: f64) -> Result<Self, InvalidHyperparameter> {
        positive("tolerance", tolerance)?;
        Ok(Self { tolerance, ..self })
    }

    /// Checks a policy that has no reference.
    ///
    /// `policy` is the forward of your training step, with everything that is on in training: it
    /// is called up to six times, with rows of this batch or variants of them.
    ///
    /// # Errors
    ///
    /// What the closure returns, or it does not give one log-probability per row.
    ///
    /// # Panics
    ///
    /// The device fails to execute what is queued.
    pub fn check_policy<E: From<InvalidInput>>(
        &self,
        policy: impl FnMut(&TokenTensors) -> Result<SequenceLogProbs, E>,
    ) -> Result<Findings, E> {
        let mut check = Check::of(self);
        if !check.stop {
            check.policy(policy)?;
        }
        Ok(check.done())
    }

    /// Checks a policy and its reference before the first step, where they must be equal.
    ///
    /// - `policy`: as in [`check_policy`](Self::check_policy)
    /// - `reference`: the frozen model, called twice; or log-probabilities of these rows from a
    ///   cache
    /// - `losses`: your objective, per example, from the log-probabilities of all rows; it is where
    ///   pairs, labels and columns are made. Called twice: with the reference on both sides for the
    ///   loss as it should be (ln 2 for DPO), and with the policy
    ///
    /// # Errors
    ///
    /// What a closure returns, or a model does not give one log-probability per row.
    ///
    /// # Panics
    ///
    /// The device fails to execute what is queued.
    pub fn check_against<E: From<InvalidInput>>(
        &self,
        policy: impl FnMut(&TokenTensors) -> Result<SequenceLogProbs, E>,
        mut reference: impl FnMut(&TokenTensors) -> Result<SequenceLogProbs, E>,
        mut losses: impl FnMut(RelativeLogProbs) -> Result<Tensor<1>, E>,
    ) -> Result<Findings, E> {
        let mut check = Check::of(self);
        if check.stop {
            return Ok(check.done());
        }
        let ours = check.policy(policy)?;
        let theirs = check.side(Side::Reference, &mut reference)?;

        // Where policy and reference are equal, a loss has its value by definition.
        let equal = theirs.log_probs.clone();
        let expected = numbers(losses(equal.clone().relative_to(equal)?)?);
        let examples: Vec<usize> = (0..expected.len())
            .filter(|&i| !expected[i].is_finite())
            .collect();
        if theirs.sound && !examples.is_empty() {
            let of = expected.len();
            check.found(Finding::LossNotFinite { examples, of });
        }
        if ours.sound && theirs.sound {
            let differ = check.differences(&ours.sums, &theirs.sums);
            if let Some(&(row, log_ratio)) = differ.first() {
                let found = numbers(losses(ours.log_probs.relative_to(theirs.log_probs)?)?);
                let loss = FirstLoss {
                    found: mean(&found),
                    expected: mean(&expected),
                };
                check.found(Finding::NotAtReference {
                    row,
                    log_ratio,
                    rows: differ.len(),
                    of: check.host.rows,
                    loss,
                });
            }
        }
        Ok(check.done())
    }
}

/// One model on the batch.
struct Pass {
    log_probs: SequenceLogProbs,
    sums: Vec<f64>,
    /// Whether its numbers can be compared with others.
    sound: bool,
}

/// A check under way.
struct Check<'a> {
    batch: &'a FirstBatch,
    host: Host,
    /// The batch as models are asked about it: without what counts and should not, which is a
    /// finding of its own.
    rows: TokenTensors,
    findings: Vec<Finding>,
    not_checked: Vec<&'static str>,
    /// Whether the models would fail.
    stop: bool,
}

impl<'a> Check<'a> {
    fn of(batch: &'a FirstBatch) -> Self {
        let host = Host::read(&batch.rows);
        let mut findings = host.findings(&batch.labels, batch.vocab);
        let mut not_checked = Vec::new();
        if batch.vocab.is_none() {
            not_checked.push("ids against the vocabulary: say `with_vocab`");
        }
        match batch.labels {
            Labels::Pairs | Labels::Thumbs(_) => {}
            Labels::Lists(_) => not_checked.push("scores against lengths: of lists they are not"),
            Labels::None => not_checked.push("labels: say `pairs`, `thumbs` or `lists`"),
        }
        if batch.adapters == Some(0) {
            findings.push(Finding::NoAdapter);
        }
        let outside = |finding: &Finding| matches!(finding, Finding::OutsideVocabulary { .. });
        let stop = findings.iter().any(outside);
        if stop {
            not_checked.push("the models: they have no embedding for some ids");
        }
        let counted = host.counted.clone();
        let rows = TokenTensors {
            completion_mask: batch.mask(counted, [host.rows, host.time]),
            ..batch.rows.clone()
        };
        Self {
            batch,
            host,
            rows,
            findings,
            not_checked,
            stop,
        }
    }

    fn found(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    fn done(self) -> Findings {
        Findings::new(self.findings, self.not_checked)
    }

    /// Rows whose numbers differ by more than the tolerance, the largest difference first.
    fn differences(&self, ours: &[f64], theirs: &[f64]) -> Vec<(usize, f64)> {
        let allowed = |row| self.batch.tolerance * (self.host.length(row).max(1) as f64).sqrt();
        let differences = ours.iter().zip(theirs).map(|(a, b)| a - b).enumerate();
        let mut differ: Vec<(usize, f64)> = differences
            .filter(|&(row, difference)| difference.is_nan() || difference.abs() > allowed(row))
            .collect();
        differ.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
        differ
    }

    /// Two passes of a model, and what its numbers say.
    fn side<E: From<InvalidInput>>(
        &mut self,
        side: Side,
        model: &mut impl FnMut(&TokenTensors) -> Result<SequenceLogProbs, E>,
    ) -> Result<Pass, E> {
        let log_probs = model(&self.rows)?;
        let sums = self.sums(&log_probs)?;
        let again = model(&self.rows)?;
        let again = self.sums(&again)?;
        let lengths = numbers(log_probs.lengths());
        let before = self.findings.len();

        let finite = self.finite(side, |row| sums[row].is_finite());
        let of = sums.len();
        let counts_others = |&row: &usize| lengths[row] != self.host.length(row) as f64;
        if let Some(row) = (0..of).find(counts_others) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a number of tokens"
            )]
            let found = lengths[row] as usize;
            let expected = self.host.length(row);
            self.found(Finding::CountsOtherTokens {
                side,
                row,
                found,
                expected,
            });
        }
        if finite {
            self.repeats(side, &sums, &again);
        }
        let sound = self.findings.len() == before;
        let above = |&(_, &sum): &(usize, &f64)| sum.is_finite() && sum > self.batch.tolerance;
        let largest = sums.iter().enumerate().filter(above);
        if let Some((row, &log_prob)) = largest.max_by(|a, b| a.1.total_cmp(b.1)) {
            self.found(Finding::AboveZero {
                side,
                row,
                log_prob,
            });
        }
        Ok(Pass {
            log_probs,
            sums,
            sound,
        })
    }

    /// Whether the numbers of all rows are, and if not, which.
    fn finite(&mut self, side: Side, is_finite: impl Fn(usize) -> bool) -> bool {
        let of = self.host.rows;
        let rows: Vec<usize> = (0..of).filter(|&row| !is_finite(row)).collect();
        let finite = rows.is_empty();
        if !finite {
            self.found(Finding::NotFinite { side, rows, of });
        }
        finite
    }

    /// Whether two passes over the same rows give the same, and if not, by how much they differ.
    fn repeats(&mut self, side: Side, sums: &[f64], again: &[f64]) -> bool {
        let Some(&(row, difference)) = self.differences(sums, again).first() else {
            return true;
        };
        let difference = difference.abs();
        self.found(Finding::Random {
            side,
            row,
            difference,
        });
        false
    }

    fn sums<E: From<InvalidInput>>(&self, log_probs: &SequenceLogProbs) -> Result<Vec<f64>, E> {
        sums(log_probs, self.host.rows)
    }

    fn policy<E: From<InvalidInput>>(
        &mut self,
        mut policy: impl FnMut(&TokenTensors) -> Result<SequenceLogProbs, E>,
    ) -> Result<Pass, E> {
        let pass = self.side(Side::Policy, &mut policy)?;
        let counted: usize = (0..self.host.rows).map(|row| self.host.length(row)).sum();
        if counted > 0 && !pass.log_probs.sum().is_tracked() {
            self.found(Finding::NoGradient);
        }
        if !pass.sound {
            self.not_checked
                .push("padding and causality: the policy's numbers are not comparable");
            return Ok(pass);
        }
        // Fewer tokens than this may all be rare ones.
        if let Some(vocab) = self.batch.vocab
            && counted >= 32
        {
            let mean = pass.sums.iter().sum::<f64>() / counted as f64;
            let chance = -(vocab as f64).ln();
            // A model that was just made is worse than a guess by half the variance of its logits.
            if mean < chance - 1.0 {
                self.found(Finding::WorseThanChance { mean, chance });
            }
        }
        self.padding(&pass, &mut policy)?;
        self.causality(&mut policy)?;
        Ok(pass)
    }

    fn padding<E: From<InvalidInput>>(
        &mut self,
        pass: &Pass,
        policy: &mut impl FnMut(&TokenTensors) -> Result<SequenceLogProbs, E>,
    ) -> Result<(), E> {
        let padding = |row: usize| self.host.time - self.host.real(row).count();
        let padded = (0..self.host.rows).any(|row| padding(row) > 0);
        if !padded {
            self.not_checked
                .push("padding: no row has any; take rows of unequal lengths");
        } else if let Some(ids) = self.with_others(|i| self.host.padding[i]) {
            let moved = policy(&self.with_ids(ids))?;
            let moved = self.sums(&moved)?;
            if let Some(&(row, difference)) = self.differences(&moved, &pass.sums).first() {
                let difference = difference.abs();
                self.found(Finding::PaddingReaches { row, difference });
                return Ok(());
            }
        }
        // The one with most padding; of equals the first.
        let counts = (0..self.host.rows).filter(|&row| self.host.length(row) > 0);
        let Some(row) = counts.rev().max_by_key(|&row| padding(row)) else {
            return Ok(());
        };
        if padding(row) == 0 && self.host.rows == 1 {
            return Ok(());
        }
        let real: Vec<usize> = self.host.real(row).collect();
        let shape = [1, real.len()];
        let alone = TokenTensors {
            ids: self
                .batch
                .ids(real.iter().map(|&i| self.host.ids[i]).collect(), shape),
            completion_mask: self
                .batch
                .mask(real.iter().map(|&i| self.host.counted[i]).collect(), shape),
            pad_mask: self.batch.mask(vec![false; real.len()], shape),
        };
        let alone = policy(&alone)?;
        let alone = sums(&alone, 1)?[0];
        let mut with_alone = pass.sums.clone();
        with_alone[row] = alone;
        if !self.differences(&with_alone, &pass.sums).is_empty() {
            self.found(Finding::AloneDiffers {
                row,
                padding: padding(row),
                in_batch: pass.sums[row],
                alone,
            });
        }
        Ok(())
    }

    /// What stands before the last token of a row must not change with it.
    fn causality<E: From<InvalidInput>>(
        &mut self,
        policy: &mut impl FnMut(&TokenTensors) -> Result<SequenceLogProbs, E>,
    ) -> Result<(), E> {
        let last: Vec<Option<usize>> = (0..self.host.rows)
            .map(|row| self.host.real(row).last())
            .collect();
        let is_last = |i: usize| last[i / self.host.time] == Some(i);
        let mut counted = self.host.counted.clone();
        last.iter().flatten().for_each(|&i| counted[i] = false);
        let some = counted.contains(&true);
        let Some(ids) = self.with_others(is_last).filter(|_| some) else {
            self.not_checked
                .push("causality: no token counts before the last one of its row");
            return Ok(());
        };
        let shape = [self.host.rows, self.host.time];
        let completion_mask = self.batch.mask(counted, shape);
        let [before, after] = [self.host.ids.clone(), ids].map(|ids| TokenTensors {
            completion_mask: completion_mask.clone(),
            ..self.with_ids(ids)
        });
        let before = policy(&before)?;
        let before = self.sums(&before)?;
        let after = policy(&after)?;
        let after = self.sums(&after)?;
        if let Some(&(row, difference)) = self.differences(&after, &before).first() {
            let difference = difference.abs();
            self.found(Finding::SeesTheFuture { row, difference });
        }
        Ok(())
    }

    /// The ids with others where `which` says so; none if the batch knows a single id.
    fn with_others(&self, which: impl Fn(usize) -> bool) -> Option<Vec<i64>> {
        with_others(&self.host.ids, which)
    }

    fn with_ids(&self, ids: Vec<i64>) -> TokenTensors {
        let shape = [self.host.rows, self.host.time];
        TokenTensors {
            ids: self.batch.ids(ids, shape),
            ..self.rows.clone()
        }
    }
}

impl FirstBatch {
    /// On the batch's device, in its number type.
    fn ids(&self, ids: Vec<i64>, shape: [usize; 2]) -> Tensor<2, Int> {
        let like = &self.rows.ids;
        Tensor::from_data(TensorData::new(ids, shape), (&like.device(), like.dtype()))
    }

    fn mask(&self, mask: Vec<bool>, shape: [usize; 2]) -> Tensor<2, Bool> {
        Tensor::from_data(TensorData::new(mask, shape), &self.rows.ids.device())
    }
}

/// `ids` with others of them where `which` says so; none if there is a single one.
fn with_others(ids: &[i64], which: impl Fn(usize) -> bool) -> Option<Vec<i64>> {
    let first = *ids.first()?;
    let second = *ids.iter().find(|&&id| id != first)?;
    let other = |id| if id == first { second } else { first };
    let replaced = ids.iter().enumerate();
    let replaced = replaced.map(|(i, &id)| if which(i) { other(id) } else { id });
    Some(replaced.collect())
}

fn sums<E: From<InvalidInput>>(log_probs: &SequenceLogProbs, rows: usize) -> Result<Vec<f64>, E> {
    let sum = log_probs.sum();
    InvalidInput::check_shape("log_probs", &[rows].into(), &sum.shape())?;
    Ok(numbers(sum))
}

fn numbers(tensor: Tensor<1>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
