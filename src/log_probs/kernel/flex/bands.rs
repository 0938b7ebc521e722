//! The order of a walk over words, and the room that its backward takes: first what the forward
//! kept, then what is computed again.

use std::ops::Range;

use burn::backend::flex::FlexTensor;

/// Steps over `0..kept`, then over `kept..all`.
pub fn bands(kept: usize, all: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    let steps = move |from: usize, to: usize| {
        let band = move |first: usize| first..(first + step).min(to);
        (from..to).step_by(step).map(band)
    };
    steps(0, kept).chain(steps(kept, all))
}

/// The logits that a forward left.
pub fn kept(tiles: &mut [FlexTensor]) -> &mut [f32] {
    let Some(tiles) = tiles.first_mut() else {
        return &mut [];
    };
    let (start, len) = (tiles.layout().start_offset(), tiles.layout().num_elements());
    &mut tiles.storage_mut()[start..][..len]
}

/// Where a backward puts its deltas.
pub struct Room<'a> {
    /// In the place of logits that are not yet used.
    pub kept: &'a mut [f32],
    /// One buffer again and again.
    pub scratch: &'a mut [f32],
}

impl Room<'_> {
    /// For the next band, of so many numbers.
    pub fn of(&mut self, is_kept: bool, len: usize) -> &mut [f32] {
        if !is_kept {
            return &mut self.scratch[..len];
        }
        let (this, rest) = std::mem::take(&mut self.kept).split_at_mut(len);
        self.kept = rest;
        this
    }
}

/// Zeros for a gradient that is wanted.
pub fn gradient(wanted: bool, len: usize) -> Vec<f32> {
    vec![0.0; if wanted { len } else { 0 }]
}
