//! Buffers that start at a cache line, and their parts.

use std::sync::{Mutex, PoisonError};

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::Shape;

use super::panels::LANES;
use crate::kernel::flex::tensors::tensor;

/// A buffer of numbers that starts at a cache line. A vector that crosses into a second cache line
/// would need two reads.
pub(super) struct Aligned {
    data: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub(super) fn zeros(len: usize) -> Self {
        Self::after(0, len)
    }

    /// As [`Self::zeros`], in an allocation that has room for at least `room` more numbers before
    /// the buffer.
    pub(super) fn after(room: usize, len: usize) -> Self {
        let data = vec![0.0; room + len + LANES];
        let start = room + data[room..].as_ptr().align_offset(64).min(LANES);
        Self { data, start, len }
    }

    pub(super) fn get(&self) -> &[f32] {
        &self.data[self.start..][..self.len]
    }

    pub(super) fn get_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.start..][..self.len]
    }

    /// The buffer, a view into its allocation.
    pub(super) fn into_tensor(self) -> FlexTensor {
        let allocation = [self.data.len()];
        tensor(self.data, allocation).narrow(0, self.start, self.len)
    }

    /// The inverse of [`Self::into_tensor`].
    pub(super) fn from_tensor(tensor: FlexTensor) -> Self {
        let (start, len) = (
            tensor.layout().start_offset(),
            tensor.layout().num_elements(),
        );
        let allocation = tensor.storage::<f32>().len();
        let whole = tensor.with_layout(Layout::contiguous(Shape::new([allocation])));
        let data = whole.into_data().into_vec().expect("f32");
        Self { data, start, len }
    }

    /// The allocation, and where the buffer starts.
    pub(super) fn into_parts(self) -> (Vec<f32>, usize) {
        (self.data, self.start)
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
