//! The sequences of a batch, in the order in which its tensors have them.

use super::example::Example;
use super::label::{Demonstration, Desirable, Preference, Sample, Scores};
use super::mismatched::WithMismatched;
use crate::tokens::Sequence;

/// A label whose examples become a batch. Sealed, since this module is private.
pub trait Collated: Sized {
    fn sequences(items: &[Example<Vec<u32>, Self>]) -> Vec<Sequence> {
        items.iter().flat_map(Example::sequences).collect()
    }

    /// The sequences of a second batch.
    fn mismatched(_: &[Example<Vec<u32>, Self>]) -> Option<Vec<Sequence>> {
        None
    }
}

impl Collated for Preference {
    fn sequences(items: &[Example<Vec<u32>, Self>]) -> Vec<Sequence> {
        let pairs = items.iter().map(Example::sequences);
        let (mut sequences, mut rejected) = (Vec::new(), Vec::new());
        for mut pair in pairs.map(Vec::into_iter) {
            sequences.extend(pair.next());
            rejected.extend(pair.next());
        }
        sequences.append(&mut rejected);
        sequences
    }
}

impl Collated for Desirable {}

impl Collated for Demonstration {}

impl Collated for Sample {}

impl Collated for WithMismatched {
    fn mismatched(items: &[Example<Vec<u32>, Self>]) -> Option<Vec<Sequence>> {
        let sequence = |item: &Example<_, Self>| item.label.sequence.clone();
        Some(items.iter().map(sequence).collect())
    }
}

impl Collated for Scores {
    fn sequences(items: &[Example<Vec<u32>, Self>]) -> Vec<Sequence> {
        let candidates = candidates(items);
        let row = |item: &Example<Vec<u32>, Self>| {
            let absent = Sequence::new(&item.prompt, &[]);
            let mut row = item.sequences();
            row.resize(candidates, absent);
            row
        };
        items.iter().flat_map(row).collect()
    }
}

/// The length of the longest list.
pub(super) fn candidates(items: &[Example<Vec<u32>, Scores>]) -> usize {
    let lengths = items.iter().map(|item| item.completions().len());
    lengths.max().unwrap_or(1)
}
