use burn::data::dataset::{Dataset, DatasetError};

use super::error::DataError;
use super::example::Example;
use super::label::Desirable;
use super::truncate::{Frame, Truncation};
use crate::tokens::Sequence;

/// The label of an unpaired completion with a completion of another prompt beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WithMismatched {
    /// The label of the completion itself.
    pub desirable: Desirable,
    /// The example's prompt with another prompt's completion.
    pub sequence: Sequence,
}

/// Unpaired completions, each with a mismatched one, on which KTO's z₀ is estimated.
///
/// Each example gets the completion (and its mask of tokens that count) of the next example that
/// has another prompt and fits; after the last example comes the first. TRL pairs within a batch: a
/// batch of one then gets its own completion, and neighbours with the same prompt get each other's.
/// Here neither happens, and the pairing does not depend on the batch. Shuffle before, if the order
/// of the examples means something.
#[derive(Debug)]
pub struct Mismatched<D> {
    dataset: D,
    truncation: Truncation,
}

impl<D: Dataset<Example<Vec<u32>, Desirable>>> Mismatched<D> {
    /// Pairs the examples of `dataset`; `truncation` is applied to the new pairs. A prompt stays as
    /// it is: the completion beside it loses its end where the truncation may cut completions, and
    /// another one is taken where it may not.
    ///
    /// Reads nothing yet. Whether an example has a partner depends on prompts and lengths of the
    /// others, so that the answer would read and tokenize all of them. An example without a partner
    /// is therefore an error when it is asked for: [`DataError::NoMismatch`]. So is a truncation
    /// that leaves no token of a prompt or a completion.
    pub fn new(dataset: D, truncation: Truncation) -> Self {
        Self {
            dataset,
            truncation,
        }
    }

    fn partner(&self, index: usize, prompt: &[u32]) -> Result<Sequence, DataError> {
        self.truncation.check()?;
        let length = self.dataset.len();
        for step in 1..length {
            let other = self.dataset.get((index + step) % length)?;
            if other.prompt == prompt {
                continue;
            }
            let partner = &other.sequences()[0];
            let mut sequence = Sequence::new(prompt, partner.completion());
            if let Some(counted) = partner.counted() {
                sequence = sequence.with_counted(counted)?;
            }
            let room = self.truncation.room_of_mismatch(&sequence);
            // The prompt is not cut, so that it has no frame to keep.
            let shortened = room.and_then(|room| room.shorten(&[sequence], Frame::default()));
            if let Ok((mut shortened, _)) = shortened {
                return Ok(shortened.remove(0));
            }
        }
        Err(DataError::NoMismatch { index })
    }
}

impl<D> Dataset<Example<Vec<u32>, WithMismatched>> for Mismatched<D>
where
    D: Dataset<Example<Vec<u32>, Desirable>>,
{
    fn get(&self, index: usize) -> Result<Example<Vec<u32>, WithMismatched>, DatasetError> {
        let example = self.dataset.get(index)?;
        let sequence = self
            .partner(index, &example.prompt)
            .map_err(DatasetError::new)?;
        Ok(example.relabel(|desirable| WithMismatched {
            desirable,
            sequence,
        }))
    }

    fn len(&self) -> usize {
        self.dataset.len()
    }
}
