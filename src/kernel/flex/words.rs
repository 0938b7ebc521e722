//! Access to the weight of a head as f32, some words at a time.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, bf16, f16};

use super::matrix::Matrix;

/// The weight of a head, `[vocab, hidden]`, in any type and layout.
pub(super) struct Words {
    pub tensor: FlexTensor,
}

impl Words {
    pub(super) fn len(&self) -> usize {
        self.tensor.layout().shape()[0]
    }

    /// The rows of the words in `words`. Half precision is converted to f32 in `scratch`.
    pub(super) fn rows<'a>(&'a self, words: Range<usize>, scratch: &'a mut Vec<f32>) -> Matrix<'a> {
        match self.tensor.dtype() {
            DType::F32 => Matrix {
                data: self.tensor.storage(),
                offset: self.tensor.layout().start_offset(),
                shape: self.tensor.layout().shape().dims(),
                strides: self.strides(),
            }
            .rows(words),
            DType::F16 => {
                let stored: &[f16] = self.tensor.storage();
                self.converted(words, scratch, |index| stored[index].to_f32())
            }
            DType::BF16 => {
                let stored: &[bf16] = self.tensor.storage();
                self.converted(words, scratch, |index| stored[index].to_f32())
            }
            dtype => unreachable!("{dtype:?} goes another way"),
        }
    }

    fn strides(&self) -> [isize; 2] {
        let strides = self.tensor.layout().strides();
        [strides[0], strides[1]]
    }

    fn converted<'a>(
        &self,
        words: Range<usize>,
        scratch: &'a mut Vec<f32>,
        at: impl Fn(usize) -> f32,
    ) -> Matrix<'a> {
        let width = self.tensor.layout().shape()[1];
        let [down, right] = self.strides();
        let start = self.tensor.layout().start_offset().cast_signed();
        let rows = words.len();
        scratch.clear();
        scratch.extend(words.flat_map(|word| {
            let first = start + word.cast_signed() * down;
            let at = &at;
            let columns = 0..width.cast_signed();
            columns.map(move |column| at((first + column * right).cast_unsigned()))
        }));
        Matrix::rows_of(scratch, [rows, width], width)
    }
}
