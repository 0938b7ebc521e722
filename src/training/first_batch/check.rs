use burn::tensor::{Device, Tensor};

use super::batch::{FirstBatch, Labels};
use super::data;
use super::finding::{Finding, Side};
use super::findings::Findings;
use super::host::{HostTokens, with_others};
use crate::error::InvalidInput;
use crate::log_probs::SequenceLogProbs;
use crate::tokens::TokenTensors;

/// A check under way.
pub(super) struct Check<'a> {
    pub batch: &'a FirstBatch,
    pub host: HostTokens,
    /// The batch as models are asked about it: without what counts and should not, which is a
    /// finding of its own.
    pub tokens: TokenTensors,
    pub findings: Vec<Finding>,
    pub not_checked: Vec<&'static str>,
    /// Whether the models would fail.
    pub stop: bool,
}

impl<'a> Check<'a> {
    /// With the findings of the data alone.
    pub(super) fn new(batch: &'a FirstBatch) -> Result<Self, InvalidInput> {
        let host = HostTokens::read(&batch.tokens)?;
        let mut findings = data::findings(&host, batch);
        let mut not_checked = Vec::new();
        if batch.vocab.is_none() {
            not_checked.push("ids against the vocabulary: say `with_vocab`");
        }
        match batch.labels {
            Labels::Pairs | Labels::Unpaired(_) => {}
            Labels::Lists(_) => not_checked.push("scores against lengths: of lists they are not"),
            Labels::None => not_checked.push("labels: say `pairs`, `unpaired` or `lists`"),
        }
        match &batch.parameters {
            Some(of_parameters) => findings.extend(of_parameters.iter().cloned()),
            None => not_checked.push("tied weights: say `with_parameters_of`"),
        }
        if batch.adapters == Some(0) {
            findings.push(Finding::NoAdapter);
        }
        let is_outside = |finding: &Finding| matches!(finding, Finding::OutsideVocabulary { .. });
        let stop = findings.iter().any(is_outside);
        if stop {
            not_checked.push("the models: they have no embedding for some ids");
        }
        let tokens = TokenTensors {
            completion_mask: batch.completion_mask_of(&host.counted, [host.rows, host.time])?,
            ..batch.tokens.clone()
        };
        Ok(Self {
            batch,
            host,
            tokens,
            findings,
            not_checked,
            stop,
        })
    }

    pub(super) fn report(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// The findings, once no pass is held any more.
    pub(super) fn finish(self) -> Findings {
        if !self.stop {
            free_graphs(&self.tokens.ids.device().autodiff());
        }
        Findings::new(self.findings, self.not_checked)
    }

    /// Rows whose numbers differ by more than the tolerance, the largest difference first.
    pub(super) fn differences(&self, ours: &[f64], theirs: &[f64]) -> Vec<(usize, f64)> {
        let allowed = |row| self.batch.tolerance * (self.host.length(row).max(1) as f64).sqrt();
        let differences = ours.iter().zip(theirs).map(|(a, b)| a - b).enumerate();
        let mut differ: Vec<(usize, f64)> = differences
            .filter(|&(row, difference)| difference.is_nan() || difference.abs() > allowed(row))
            .collect();
        differ.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
        differ
    }

    /// Whether the numbers of all rows are finite; reports those that are not.
    pub(super) fn check_finite(&mut self, side: Side, is_finite: impl Fn(usize) -> bool) -> bool {
        let rows = self.host.rows_where(|row| !is_finite(row));
        let finite = rows.is_empty();
        if !finite {
            let of = self.host.rows;
            self.report(Finding::NotFinite { side, rows, of });
        }
        finite
    }

    /// Whether two passes over the same rows are equal; reports the largest difference.
    pub(super) fn check_repeats(&mut self, side: Side, sums: &[f64], again: &[f64]) -> bool {
        let Some(&(row, difference)) = self.differences(sums, again).first() else {
            return true;
        };
        let difference = difference.abs();
        self.report(Finding::Random {
            side,
            row,
            difference,
        });
        false
    }

    /// The log-probability of every row.
    pub(super) fn sums(&self, log_probs: &SequenceLogProbs) -> Result<Vec<f64>, InvalidInput> {
        sums(log_probs, self.host.rows)
    }

    /// The tokens with another id where `replace` says so; none if the batch knows a single id.
    pub(super) fn with_others(&self, replace: impl Fn(usize) -> bool) -> Option<TokenTensors> {
        let ids = with_others(&self.host.ids, replace)?;
        let shape = [self.host.rows, self.host.time];
        Some(TokenTensors {
            ids: self.batch.ids_of(ids, shape),
            ..self.tokens.clone()
        })
    }
}

pub(super) fn sums(log_probs: &SequenceLogProbs, rows: usize) -> Result<Vec<f64>, InvalidInput> {
    let sum = log_probs.sum();
    InvalidInput::check_shape("log_probs", &[rows].into(), &sum.shape())?;
    let numbers = numbers("log_probs", &sum)?;
    if sum.is_tracked() {
        free_graphs(&sum.device());
    }
    Ok(numbers)
}

/// Frees graphs that nobody holds, those of passes whose parameters were a fork: Burn does so in a
/// backward, whatever it is of.
fn free_graphs(device: &Device) {
    let one = Tensor::<1>::zeros([1], device).require_grad();
    drop(one.sum().backward());
}

pub(super) fn numbers(name: &'static str, tensor: &Tensor<1>) -> Result<Vec<f64>, InvalidInput> {
    Ok(InvalidInput::read(name, tensor)?.iter().collect())
}
