//! Matrix products on slices. This is the only file with `unsafe`.

use std::ops::Range;

/// A matrix inside a slice. Offset and strides are in elements.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub data: &'a [f32],
    pub offset: usize,
    pub shape: [usize; 2],
    pub strides: [isize; 2],
}

impl<'a> Matrix<'a> {
    /// A matrix whose contiguous rows start every `row_stride` elements of `data`.
    pub(super) fn rows_of(data: &'a [f32], shape: [usize; 2], row_stride: usize) -> Self {
        let strides = [row_stride.cast_signed(), 1];
        Self {
            data,
            offset: 0,
            shape,
            strides,
        }
    }

    pub(super) fn transposed(self) -> Self {
        let ([rows, columns], [down, right]) = (self.shape, self.strides);
        Self {
            shape: [columns, rows],
            strides: [right, down],
            ..self
        }
    }

    pub(super) fn rows(self, rows: Range<usize>) -> Self {
        assert!(rows.end <= self.shape[0]);
        let offset = self.offset.cast_signed() + rows.start.cast_signed() * self.strides[0];
        Self {
            offset: offset.cast_unsigned(),
            shape: [rows.len(), self.shape[1]],
            ..self
        }
    }

    pub(super) fn columns(self, columns: Range<usize>) -> Self {
        self.transposed().rows(columns).transposed()
    }

    pub(super) fn at(&self, row: usize, column: usize) -> f32 {
        let [down, right] = self.strides;
        let offset = row.cast_signed() * down + column.cast_signed() * right;
        self.data[(self.offset.cast_signed() + offset).cast_unsigned()]
    }

    /// One row as a slice. The rows of the matrix must be contiguous.
    pub(super) fn row(&self, row: usize) -> &'a [f32] {
        assert_eq!(self.strides[1], 1);
        let start = self.offset.cast_signed() + row.cast_signed() * self.strides[0];
        &self.data[start.cast_unsigned()..][..self.shape[1]]
    }

    /// Whether every element lies inside the slice.
    fn is_inside(&self) -> bool {
        let (mut first, mut last) = (self.offset as i128, self.offset as i128);
        for (size, stride) in self.shape.into_iter().zip(self.strides) {
            let reach = (size as i128 - 1) * stride as i128;
            first += reach.min(0);
            last += reach.max(0);
        }
        self.shape.contains(&0) || (first >= 0 && last < self.data.len() as i128)
    }
}

/// Writes `a · b` to `out`, or adds `a · b` to `out` if `accumulate` is true. A row of the result
/// has `b.shape[1]` numbers, and the rows start every `row_stride` numbers in `out`. The product
/// runs on the calling thread.
pub(super) fn multiply(a: Matrix, b: Matrix, out: &mut [f32], row_stride: usize, accumulate: bool) {
    let ([m, k], [inner, n]) = (a.shape, b.shape);
    assert_eq!(k, inner, "inner dimensions");
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        a.is_inside() && b.is_inside(),
        "operands leave their slices"
    );
    assert!(row_stride >= n && (m - 1) * row_stride + n <= out.len());
    // SAFETY: `gemm` reads element (i, j) of an operand at the operand's pointer plus i·row stride
    // plus j·column stride, for i, j inside the shapes passed. `is_inside` has shown that all these
    // places lie in the operand's slice. `gemm` writes element (i, j) of the destination at
    // i·row_stride + j. These places are inside `out` by the assertion above. They are distinct for
    // distinct (i, j), since row_stride ≥ n. `out` is borrowed mutably, so `out` overlaps neither
    // operand. All three are initialised f32.
    #[allow(unsafe_code, reason = "gemm's interface is raw pointers")]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            row_stride.cast_signed(),
            accumulate,
            a.data.as_ptr().add(a.offset),
            a.strides[1],
            a.strides[0],
            b.data.as_ptr().add(b.offset),
            b.strides[1],
            b.strides[0],
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Matrix, multiply};

    /// A view that owns its buffer. The buffer holds NaN in all places outside the view.
    #[derive(Debug)]
    struct Stored {
        data: Vec<f32>,
        offset: usize,
        shape: [usize; 2],
        strides: [isize; 2],
    }

    impl Stored {
        fn new(shape: [usize; 2], transposed: bool, flipped: [bool; 2], gap: usize) -> Self {
            let [rows, columns] = if transposed {
                [shape[1], shape[0]]
            } else {
                shape
            };
            let stride = columns + gap;
            let mut data = vec![f32::NAN; rows * stride + 2 * gap];
            for row in 0..rows {
                for column in 0..columns {
                    let value = (row * 31 + column * 17) % 23;
                    data[gap + row * stride + column] = value as f32 - 11.0;
                }
            }
            let mut strides = [stride.cast_signed(), 1];
            let mut offset = gap;
            for ((stride, size), flipped) in strides.iter_mut().zip([rows, columns]).zip(flipped) {
                if flipped && size > 0 {
                    offset += (size - 1) * stride.cast_unsigned();
                    *stride = -*stride;
                }
            }
            if transposed {
                strides.swap(0, 1);
            }
            Self {
                data,
                offset,
                shape,
                strides,
            }
        }

        fn view(&self) -> Matrix<'_> {
            Matrix {
                data: &self.data,
                offset: self.offset,
                shape: self.shape,
                strides: self.strides,
            }
        }
    }

    fn size() -> impl Strategy<Value = usize> {
        prop::sample::select(&[0, 1, 2, 3, 16, 31, 47, 65][..])
    }

    proptest! {
        #[test]
        fn products_of_views(
            (m, n, k) in (size(), size(), size()),
            (transposed, flipped) in any::<([bool; 2], [[bool; 2]; 2])>(),
            (gap, accumulate) in (0_usize..4, any::<bool>()),
        ) {
            let a = Stored::new([m, k], transposed[0], flipped[0], gap);
            let b = Stored::new([k, n], transposed[1], flipped[1], gap + 1);
            let stride = n + gap;
            let mut out = vec![7.0; m * stride];
            multiply(a.view(), b.view(), &mut out, stride, accumulate);
            for row in 0..m {
                for column in 0..stride {
                    let before = if accumulate || column >= n { 7.0 } else { 0.0 };
                    let inner = if column < n { k } else { 0 };
                    let expected: f32 = (0..inner)
                        .map(|i| a.view().at(row, i) * b.view().at(i, column))
                        .sum();
                    // All values are whole numbers below 2²⁴, so f32 sums are exact in any order.
                    prop_assert_eq!(out[row * stride + column], before + expected);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "operands leave their slices")]
    fn an_operand_too_short() {
        let data = [0.0; 11];
        let a = Matrix::rows_of(&data, [3, 4], 4);
        multiply(a, a.transposed(), &mut [0.0; 9], 3, false);
    }

    #[test]
    fn what_runs_backwards_stays_inside_as_well() {
        let backwards = |offset| Matrix {
            data: &[0.0; 6],
            offset,
            shape: [2, 2],
            strides: [-2, -1],
        };
        assert!(!backwards(2).is_inside());
        assert!(backwards(3).is_inside());
        assert!(!backwards(6).is_inside());
    }

    #[test]
    #[should_panic(expected = "row_stride >= n")]
    fn a_destination_whose_rows_overlap() {
        let data = [0.0; 12];
        let a = Matrix::rows_of(&data, [3, 4], 4);
        multiply(a, a.transposed(), &mut [0.0; 9], 2, false);
    }
}
