//! Buffers that start at a cache line, and their parts.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::panels::LANES;

/// A buffer of numbers that starts at a cache line. A vector that crosses into a second cache line
/// would need two reads.
pub(super) struct Aligned {
    data: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub(super) fn zeros(len: usize) -> Self {
        let data = vec![0.0; len + LANES];
        let start = data.as_ptr().align_offset(64).min(LANES);
        Self { data, start, len }
    }

    pub(super) fn get(&self) -> &[f32] {
        &self.data[self.start..][..self.len]
    }

    pub(super) fn get_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.start..][..self.len]
    }
}

/// Buffers of one length that the tasks of a problem use in turn. Fresh memory costs a fault per
/// page, so a task takes what another one has left.
pub(super) struct Pool {
    len: usize,
    free: Mutex<Vec<Aligned>>,
}

impl Pool {
    pub(super) fn new(len: usize) -> Self {
        let free = Mutex::default();
        Self { len, free }
    }

    /// Calls `work` with a buffer, whose numbers may be anything.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut [f32]) -> R) -> R {
        let free = || self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let buffer = free().pop();
        let mut buffer = buffer.unwrap_or_else(|| Aligned::zeros(self.len));
        let result = work(buffer.get_mut());
        free().push(buffer);
        result
    }
}

/// Splits `all` into consecutive parts of the lengths `lens`.
pub(super) fn split<T>(mut all: &mut [T], lens: impl IntoIterator<Item = usize>) -> Vec<&mut [T]> {
    lens.into_iter()
        .map(|len| {
            let (part, rest) = std::mem::take(&mut all).split_at_mut(len);
            all = rest;
            part
        })
        .collect()
}

/// Cuts `0..len` into `parts` ranges at most.
pub(super) fn ranges(len: usize, parts: usize) -> Vec<Range<usize>> {
    let step = len.div_ceil(parts.max(1)).max(1);
    let starts = (0..len).step_by(step);
    starts.map(|start| start..(start + step).min(len)).collect()
}
