use burn::data::dataset::{Dataset, DatasetError};

use super::error::DataError;
use super::example::Example;
use super::label::Desirable;
use super::truncate::Truncation;
use crate::tokens::Sequence;

/// The label of a thumb with a completion of another prompt beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WithMismatched {
    /// The thumb.
    pub desirable: Desirable,
    /// This example's prompt with another prompt's completion.
    pub sequence: Sequence,
}

/// Thumbs with mismatched completions, on which KTO's z₀ is estimated.
///
/// Each row gets the completion (and its mask of tokens that count) of the next row that has another
/// prompt and fits; after the last row comes the first. TRL pairs within a batch: a batch of one then
/// gets its own completion, and neighbours with the same prompt get each other's. Here neither
/// happens, and the pairing does not depend on the batch. Shuffle before, if the order of the rows
/// means something.
#[derive(Debug)]
pub struct Mismatched<D> {
    dataset: D,
    truncation: Truncation,
}

impl<D: Dataset<Example<Vec<u32>, Desirable>>> Mismatched<D> {
    /// Pairs the rows of `dataset`; `truncation` is applied to the new pairs.
    ///
    /// Reads nothing yet. Whether a row has a partner depends on prompts and lengths of the others,
    /// so that the answer would read and tokenize all of them. A row without a partner is therefore
    /// an error when it is asked for: [`DataError::NoMismatch`]. So is a truncation that leaves no
    /// token of a prompt or a completion.
    pub fn new(dataset: D, truncation: Truncation) -> Self {
        Self {
            dataset,
            truncation,
        }
    }

    fn partner(&self, index: usize, prompt: &[u32]) -> Result<Sequence, DataError> {
        self.truncation.check()?;
        let rows = self.dataset.len();
        for step in 1..rows {
            let other = self.dataset.get((index + step) % rows)?;
            if other.prompt == prompt {
                continue;
            }
            let theirs = &other.sequences()[0];
            let mut sequence = Sequence::new(prompt, theirs.completion());
            if let Some(counted) = theirs.counted() {
                sequence = sequence.with_counted(counted)?;
            }
            if let Ok((mut row, _)) = self.truncation.apply(&[sequence]) {
                return Ok(row.remove(0));
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
