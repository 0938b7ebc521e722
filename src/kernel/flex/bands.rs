//! The order in which words are computed, and the buffers of a backward. Tiles that the forward kept
//! come first; tiles that are computed again follow.

use std::ops::Range;

use burn::backend::flex::FlexTensor;

/// Ranges of at most `step`, first over `0..kept`, then over `kept..all`.
pub(super) fn bands(kept: usize, all: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    let steps = move |from: usize, to: usize| {
        let band = move |first: usize| first..(first + step).min(to);
        (from..to).step_by(step).map(band)
    };
    steps(0, kept).chain(steps(kept, all))
}

/// The logits that a forward kept.
pub(super) fn kept(tiles: &mut [FlexTensor]) -> &mut [f32] {
    let Some(tiles) = tiles.first_mut() else {
        return &mut [];
    };
    let (start, len) = (tiles.layout().start_offset(), tiles.layout().num_elements());
    &mut tiles.storage_mut()[start..][..len]
}

/// The buffers for the deltas of a backward.
pub(super) struct BandBuffers<'a> {
    /// Kept logits that the backward has not used yet. Their deltas overwrite them.
    pub kept: &'a mut [f32],
    /// One buffer, which all other bands use in turn.
    pub scratch: &'a mut [f32],
}

impl BandBuffers<'_> {
    /// The buffer for the next band, which has `len` numbers.
    pub(super) fn next(&mut self, is_kept: bool, len: usize) -> &mut [f32] {
        if !is_kept {
            return &mut self.scratch[..len];
        }
        let (this, rest) = std::mem::take(&mut self.kept).split_at_mut(len);
        self.kept = rest;
        this
    }
}

/// Zeros for a wanted gradient; otherwise empty.
pub(super) fn gradient(wanted: bool, len: usize) -> Vec<f32> {
    vec![0.0; if wanted { len } else { 0 }]
}
