//! Examples and sequences as tensors of a device.

use burn::data::dataloader::BatchStrategy;
use burn::data::dataloader::batcher::Batcher;
use burn::tensor::Device;
use burn_preference::data::{Collator, Desirable, Example, TokenBudget};
use burn_preference::log_probs::WithStatistics;
use burn_preference::tokens::{PackedBatch, Packing, Padding, Sequence, TokenBatch};
use burn_preference::{Demonstrations, SequenceLogProbs};

use crate::data::Examples;
use crate::failure::Failure;
use crate::model::Decoder;

/// Padding or packing, the size of a forward, and the device.
#[derive(Debug, Clone)]
pub struct Batching {
    /// The token that fills rows.
    pub padding: Padding,
    /// Packing of each prompt once; without it, a row per completion.
    pub packing: Option<Packing>,
    /// Largest number of tokens of a forward, padding included.
    pub budget: usize,
    /// The device of the tensors.
    pub device: Device,
}

impl Batching {
    /// Collates examples, as the batch of their label has them.
    pub(super) fn collate<L, B>(&self, examples: Examples<L>) -> B
    where
        Collator: Batcher<Example<Vec<u32>, L>, B>,
    {
        Collator::new(self.padding).batch(examples, &self.device)
    }

    /// Makes a batch with a row per sequence.
    ///
    /// # Errors
    ///
    /// As [`TokenBatch::new`].
    pub fn tokens(&self, sequences: Vec<Sequence>) -> Result<TokenBatch, Failure> {
        Ok(TokenBatch::new(sequences, self.padding, &self.device)?)
    }

    /// Log-probabilities of completions, in their order, by hidden states and the head.
    ///
    /// # Errors
    ///
    /// As [`TokenBatch::log_probs`] and [`PackedBatch::new`].
    pub fn log_probs(
        &self,
        model: &Decoder,
        tokens: &TokenBatch,
    ) -> Result<SequenceLogProbs, Failure> {
        Ok(if let Some(packing) = self.packing {
            let packed = PackedBatch::new(tokens.sequences.clone(), packing, &self.device)?;
            packed.log_probs(model, Decoder::hidden_packed)?
        } else {
            tokens.log_probs(model, Decoder::hidden)?
        })
    }

    /// Log-probabilities of the tokens of completions, with the statistics of the same pass.
    ///
    /// # Errors
    ///
    /// As [`log_probs`](Self::log_probs).
    pub fn demonstrations(
        &self,
        model: &Decoder,
        tokens: &TokenBatch,
    ) -> Result<Demonstrations, Failure> {
        let (log_probs, statistics) = if let Some(packing) = self.packing {
            let packed = PackedBatch::new(tokens.sequences.clone(), packing, &self.device)?;
            packed.token_log_probs(WithStatistics(model.hidden_packed(&packed)))?
        } else {
            let output = model.hidden(tokens.ids.clone());
            tokens.token_log_probs(WithStatistics(output))?
        };
        Ok(Demonstrations::new(log_probs).with_statistics(statistics)?)
    }

    /// Cuts the examples of a step into parts that fit into a forward.
    pub fn parts<L>(&self, examples: Examples<L>) -> Vec<Examples<L>>
    where
        TokenBudget<L>: BatchStrategy<Example<Vec<u32>, L>>,
    {
        let mut budget = match self.packing {
            Some(packing) => TokenBudget::packed(self.budget, packing),
            None => TokenBudget::padded(self.budget, self.padding),
        };
        let mut parts = Vec::new();
        for example in examples {
            budget.add(example);
            parts.extend(budget.batch(false));
        }
        while let Some(part) = budget.batch(true) {
            parts.push(part);
        }
        parts
    }

    /// Cuts sequences into forwards, by their places: all in their order if they fit into one, and
    /// otherwise those of one prompt, or of like length, together.
    pub(super) fn forwards(&self, sequences: &[Sequence]) -> Vec<Vec<usize>> {
        let cut = |places: Vec<usize>| -> Vec<Vec<usize>> {
            let alone = |&i: &usize| {
                let [prompt, completion] = [sequences[i].prompt(), sequences[i].completion()];
                Example::unpaired(prompt.to_vec(), completion.to_vec(), true)
            };
            let parts = self.parts(places.iter().map(alone).collect());
            let mut places = places.into_iter();
            let mut next = |part: Examples<Desirable>| places.by_ref().take(part.len()).collect();
            parts.into_iter().map(&mut next).collect()
        };
        let mut places: Vec<usize> = (0..sequences.len()).collect();
        let forwards = cut(places.clone());
        if forwards.len() < 2 {
            return forwards;
        }
        match self.packing {
            Some(_) => places.sort_by_key(|&i| sequences[i].prompt()),
            None => places.sort_by_key(|&i| sequences[i].ids().len()),
        }
        cut(places)
    }
}
