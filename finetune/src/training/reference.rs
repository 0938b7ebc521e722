//! The reference's log-probabilities, from a cache or from the model.

use std::time::Instant;

use burn_preference::reference::cache::ReferenceCache;
use burn_preference::tokens::{Sequence, TokenBatch};
use burn_preference::{Frozen, SequenceLogProbs, TokenLogProbs};
use indicatif::ProgressBar;

use super::batching::Batching;
use crate::failure::Failure;
use crate::model::Decoder;
use crate::say;

/// The log-probabilities that a policy is compared with.
pub enum ReferenceLogProbs {
    /// Those of the start, computed before training.
    Cached(ReferenceCache),
    /// The start itself, which computes them in every step.
    Live(Box<Frozen<Decoder>>),
}

impl ReferenceLogProbs {
    /// Computes what `cache` does not have of the sequences of a run, `rows` at once, and reports
    /// how many those were.
    ///
    /// # Errors
    ///
    /// As [`ReferenceCache::fill`].
    pub fn computed(
        mut cache: ReferenceCache,
        model: &Frozen<Decoder>,
        sequences: &[Sequence],
        rows: usize,
        batching: &Batching,
    ) -> Result<Self, Failure> {
        let bar = ProgressBar::new(sequences.len() as u64).with_message("reference");
        let (start, before) = (Instant::now(), cache.len());
        cache.fill::<Failure>(
            sequences,
            rows,
            |some| {
                let tokens = batching.tokens(some.to_vec())?;
                batching.log_probs(model.model(), &tokens)
            },
            |progress| {
                bar.set_length(progress.total as u64);
                bar.set_position(progress.done as u64);
            },
        )?;
        bar.finish_and_clear();
        say!(
            "reference: {before} in the cache, {} computed in {:.1} s",
            cache.len() - before,
            start.elapsed().as_secs_f64()
        );
        Ok(Self::Cached(cache))
    }

    /// Log-probabilities of the completions of `tokens`.
    pub(super) fn log_probs(
        &self,
        tokens: &TokenBatch,
        batching: &Batching,
    ) -> Result<SequenceLogProbs, Failure> {
        match self {
            Self::Cached(cache) => Ok(cache.log_probs(&tokens.sequences, &batching.device)?),
            Self::Live(model) => batching.log_probs(model.model(), tokens),
        }
    }

    /// Log-probabilities of the tokens of `tokens`, of which the cache has only sums.
    pub(super) fn token_log_probs(
        &self,
        tokens: &TokenBatch,
        batching: &Batching,
    ) -> Result<TokenLogProbs, Failure> {
        match self {
            Self::Cached(_) => Err("log-probabilities of tokens, which no cache has".into()),
            Self::Live(model) => {
                let found = batching.demonstrations(model.model(), tokens)?;
                Ok(found.tokens().clone())
            }
        }
    }
}
