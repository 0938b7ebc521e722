use super::batch::FirstBatch;
use super::check::{Check, numbers, sums};
use super::finding::{Finding, Side};
use super::findings::Findings;
use crate::error::InvalidInput;
use crate::log_probs::SequenceLogProbs;
use crate::tokens::TokenTensors;

impl FirstBatch {
    /// Checks a policy that has no reference.
    ///
    /// `policy` is the forward of your training step, with everything that is on in training: it
    /// is called up to six times, with rows of this batch or variants of them. No backward follows, so
    /// that Burn keeps all of these graphs until one does over the same parameters. Of a large model
    /// call `policy.clone().fork(&device)`, a fork for each call: its graph is freed with it.
    ///
    /// # Errors
    ///
    /// What the closure returns, it does not give one log-probability per row, or a device fails.
    pub fn check_policy<E: From<InvalidInput>>(
        &self,
        policy: impl FnMut(&TokenTensors) -> Result<SequenceLogProbs, E>,
    ) -> Result<Findings, E> {
        let mut check = Check::new(self)?;
        if !check.stop {
            check.policy(policy)?;
        }
        Ok(check.finish())
    }
}

/// The log-probabilities of one model.
pub(super) struct Pass {
    pub log_probs: SequenceLogProbs,
    pub sums: Vec<f64>,
    /// Whether its numbers can be compared with others.
    pub sound: bool,
}

impl Check<'_> {
    /// Two passes of a model, and the findings of its numbers.
    pub(super) fn model<E: From<InvalidInput>>(
        &mut self,
        side: Side,
        model: &mut impl FnMut(&TokenTensors) -> Result<SequenceLogProbs, E>,
    ) -> Result<Pass, E> {
        let log_probs = model(&self.tokens)?;
        let sums = self.sums(&log_probs)?;
        let again = model(&self.tokens)?;
        let again = self.sums(&again)?;
        let lengths = numbers("lengths", &log_probs.lengths())?;
        let before = self.findings.len();

        let finite = self.check_finite(side, |row| sums[row].is_finite());
        let counts_others = |&row: &usize| lengths[row] != self.host.length(row) as f64;
        if let Some(row) = (0..sums.len()).find(counts_others) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a number of tokens"
            )]
            let found = lengths[row] as usize;
            let expected = self.host.length(row);
            self.report(Finding::CountsOtherTokens {
                side,
                row,
                found,
                expected,
            });
        }
        if finite {
            self.check_repeats(side, &sums, &again);
        }
        let sound = self.findings.len() == before;
        let is_above = |&(_, &sum): &(usize, &f64)| sum.is_finite() && sum > self.batch.tolerance;
        let above = sums.iter().enumerate().filter(is_above);
        if let Some((row, &log_prob)) = above.max_by(|a, b| a.1.total_cmp(b.1)) {
            self.report(Finding::AboveZero {
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

    pub(super) fn policy<E: From<InvalidInput>>(
        &mut self,
        mut policy: impl FnMut(&TokenTensors) -> Result<SequenceLogProbs, E>,
    ) -> Result<Pass, E> {
        let pass = self.model(Side::Policy, &mut policy)?;
        let counted: usize = (0..self.host.rows).map(|row| self.host.length(row)).sum();
        if counted > 0 && !pass.log_probs.sum().is_tracked() {
            self.report(Finding::NoGradient);
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
                self.report(Finding::WorseThanChance { mean, chance });
            }
        }
        if !self.check_padding(&pass, &mut policy)? {
            self.check_alone(&pass, &mut policy)?;
        }
        self.check_causality(&mut policy)?;
        Ok(pass)
    }

    /// Whether the padding reaches a row; reports the largest difference.
    fn check_padding<E: From<InvalidInput>>(
        &mut self,
        pass: &Pass,
        policy: &mut impl FnMut(&TokenTensors) -> Result<SequenceLogProbs, E>,
    ) -> Result<bool, E> {
        if !self.host.padding.contains(&true) {
            self.not_checked
                .push("padding: no row has any; take rows of unequal lengths");
        } else if let Some(others) = self.with_others(|i| self.host.padding[i]) {
            let moved = self.sums(&policy(&others)?)?;
            if let Some(&(row, difference)) = self.differences(&moved, &pass.sums).first() {
                let difference = difference.abs();
                self.report(Finding::PaddingReaches { row, difference });
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reports the row with most padding, if it has another log-probability alone.
    fn check_alone<E: From<InvalidInput>>(
        &mut self,
        pass: &Pass,
        policy: &mut impl FnMut(&TokenTensors) -> Result<SequenceLogProbs, E>,
    ) -> Result<(), E> {
        let counts = (0..self.host.rows).filter(|&row| self.host.length(row) > 0);
        // Of rows with as much padding the first.
        let Some(row) = counts.rev().max_by_key(|&row| self.host.padding_of(row)) else {
            return Ok(());
        };
        let padding = self.host.padding_of(row);
        if padding == 0 && self.host.rows == 1 {
            return Ok(());
        }
        let real: Vec<usize> = self.host.real(row).collect();
        let shape = [1, real.len()];
        let ids = real.iter().map(|&i| self.host.ids[i]).collect();
        let counted: Vec<bool> = real.iter().map(|&i| self.host.counted[i]).collect();
        let alone = TokenTensors {
            ids: self.batch.ids_of(ids, shape),
            completion_mask: self.batch.completion_mask_of(&counted, shape)?,
            pad_mask: self.batch.mask_of(vec![false; real.len()], shape),
        };
        let alone = sums(&policy(&alone)?, 1)?[0];
        let mut with_alone = pass.sums.clone();
        with_alone[row] = alone;
        if !self.differences(&with_alone, &pass.sums).is_empty() {
            self.report(Finding::AloneDiffers {
                row,
                padding,
                in_batch: pass.sums[row],
                alone,
            });
        }
        Ok(())
    }

    /// Reports a row in which the last token moves what stands before it.
    fn check_causality<E: From<InvalidInput>>(
        &mut self,
        policy: &mut impl FnMut(&TokenTensors) -> Result<SequenceLogProbs, E>,
    ) -> Result<(), E> {
        let rows = 0..self.host.rows;
        let last: Vec<Option<usize>> = rows.map(|row| self.host.real(row).last()).collect();
        let is_last = |i: usize| last[i / self.host.time] == Some(i);
        let mut counted = self.host.counted.clone();
        last.iter().flatten().for_each(|&i| counted[i] = false);
        let any = counted.contains(&true);
        let Some(after) = self.with_others(is_last).filter(|_| any) else {
            self.not_checked
                .push("causality: no token counts before the last one of its row");
            return Ok(());
        };
        let shape = [self.host.rows, self.host.time];
        let completion_mask = self.batch.completion_mask_of(&counted, shape)?;
        let [before, after] = [self.tokens.clone(), after].map(|tokens| TokenTensors {
            completion_mask: completion_mask.clone(),
            ..tokens
        });
        let before = self.sums(&policy(&before)?)?;
        let after = self.sums(&policy(&after)?)?;
        if let Some(&(row, difference)) = self.differences(&after, &before).first() {
            let difference = difference.abs();
            self.report(Finding::SeesTheFuture { row, difference });
        }
        Ok(())
    }
}
