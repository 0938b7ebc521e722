use burn::tensor::Tensor;

use super::batch::FirstBatch;
use super::check::{Check, numbers};
use super::finding::{Finding, FirstLoss, Side};
use super::findings::Findings;
use crate::error::InvalidInput;
use crate::log_probs::{RelativeLogProbs, SequenceLogProbs};
use crate::tokens::TokenTensors;

impl FirstBatch {
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
    /// What a closure returns, a model does not give one log-probability per row, or a device fails.
    pub fn check_against<E: From<InvalidInput>>(
        &self,
        policy: impl FnMut(&TokenTensors) -> Result<SequenceLogProbs, E>,
        mut reference: impl FnMut(&TokenTensors) -> Result<SequenceLogProbs, E>,
        mut losses: impl FnMut(RelativeLogProbs) -> Result<Tensor<1>, E>,
    ) -> Result<Findings, E> {
        let mut check = Check::new(self)?;
        if check.stop {
            return Ok(check.finish());
        }
        let ours = check.policy(policy)?;
        let theirs = check.model(Side::Reference, &mut reference)?;

        // Where policy and reference are equal, a loss has its value by definition.
        let equal = || theirs.log_probs.clone();
        let expected = numbers("losses", &losses(equal().relative_to(equal())?)?)?;
        let of = expected.len();
        let examples: Vec<usize> = (0..of).filter(|&i| !expected[i].is_finite()).collect();
        if theirs.sound && !examples.is_empty() {
            check.report(Finding::LossNotFinite { examples, of });
        }
        if ours.sound && theirs.sound {
            let differ = check.differences(&ours.sums, &theirs.sums);
            if let Some(&(row, log_ratio)) = differ.first() {
                let relative = ours.log_probs.clone().relative_to(equal())?;
                let found = numbers("losses", &losses(relative)?)?;
                let loss = FirstLoss {
                    found: mean(&found),
                    expected: mean(&expected),
                };
                check.report(Finding::NotAtReference {
                    row,
                    log_ratio,
                    rows: differ.len(),
                    of: check.host.rows,
                    loss,
                });
            }
        }
        drop((ours, theirs));
        Ok(check.finish())
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
