//! Matrix products with accumulators in registers, in safe Rust.
//!
//! A register tile multiplies a few vectors of columns of one operand with [`ROWS`] numbers of the
//! other operand. Each of these numbers is broadcast to a vector. The first operand is packed into
//! panels, which are read from front to back. The second operand is read where it is stored,
//! without packing.

#![allow(
    clippy::inline_always,
    clippy::needless_range_loop,
    reason = "what is not inlined into `dispatch` is not vectorised, and sums that are borrowed \
              leave their registers"
)]

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

/// Columns are padded to a multiple of this number, the length of the longest vector.
pub(crate) const LANES: usize = 16;
/// Maximum number of columns of a panel.
const PANEL: usize = 64;
/// Number of broadcast values that are multiplied with each vector.
const ROWS: usize = 6;
/// Maximum number of terms that are summed in a register before the sum is added to the earlier
/// sums in memory. The rounding error grows with the larger of two counts: the terms of one such
/// sum, and the number of sums.
const DEPTH: usize = 256;

/// `columns`, rounded up to a multiple of [`LANES`].
pub(crate) fn padded(columns: usize) -> usize {
    columns.next_multiple_of(LANES)
}

/// The width of the panels that columns are cut into. A panel is as wide as the registers of the machine allow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panels {
    width: usize,
}

impl Panels {
    /// `None` if these products do not support the vectors of the machine.
    pub(crate) fn new(arch: Arch) -> Option<Self> {
        match arch {
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            Arch::V4(_) => Some(Self { width: PANEL }),
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            Arch::V3(_) => Some(Self { width: LANES }),
            _ => None,
        }
    }

    /// First column and padded width of every panel.
    fn of(self, columns: usize) -> impl Iterator<Item = (usize, usize)> {
        let panel = move |first| (first, padded(columns - first).min(self.width));
        (0..columns).step_by(self.width).map(panel)
    }

    /// Packs rows of `columns` numbers into panels: `[panel][row][column]`.
    pub(crate) fn pack(self, rows: &[f32], columns: usize, out: &mut [f32]) {
        let depth = rows.len() / columns;
        for (first, width) in self.of(columns) {
            let panel = out[first * depth..].chunks_exact_mut(width);
            for (row, out) in rows.chunks_exact(columns).zip(panel) {
                let row = &row[first..columns.min(first + width)];
                out[..row.len()].copy_from_slice(row);
            }
        }
    }

    /// Packs the transposed matrix in the same way. The columns of that matrix are the `rows` of
    /// `depth` numbers.
    pub(crate) fn pack_transposed(self, rows: &[f32], depth: usize, out: &mut [f32]) {
        for (first, width) in self.of(rows.len() / depth) {
            let panel = &mut out[first * depth..][..width * depth];
            let rows = rows[first * depth..].chunks_exact(depth).take(width);
            for (column, row) in rows.enumerate() {
                for (out, x) in panel[column..].iter_mut().step_by(width).zip(row) {
                    *out = *x;
                }
            }
        }
    }
}

/// `out[j][c] = Σ_k b[j][k]·a[k][c]`; with `accumulate`, the sum is added to `out[j][c]`.
pub(crate) struct Product<'a> {
    pub panels: Panels,
    /// The operand `a`, packed in panels.
    pub a: &'a [f32],
    pub columns: usize,
    pub depth: usize,
    /// Element `[j][k]` is at `j·strides[0] + k·strides[1]`. One of the two strides must be 1. If
    /// `strides[0]` is 1, the product may read j up to the next even number, so `b` must contain
    /// these numbers.
    pub b: &'a [f32],
    pub strides: [usize; 2],
    /// Number of values of j.
    pub rows: usize,
    /// The rows of the result start every `out_stride` numbers.
    pub out: &'a mut [f32],
    pub out_stride: usize,
    pub accumulate: bool,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let accumulate = self.accumulate;
        // Cut the depth into pieces of equal length; only the last piece may be shorter.
        let pieces = self.depth.div_ceil(DEPTH);
        let length = self.depth.div_ceil(pieces.max(1));
        for (first, width) in self.panels.of(self.columns) {
            let panel = &self.a[first * self.depth..][..width * self.depth];
            for start in (0..self.depth).step_by(length) {
                let depth = start..(start + length).min(self.depth);
                let a = &panel[depth.start * width..depth.end * width];
                self.accumulate = accumulate || start > 0;
                match width / S::F32_LANES {
                    1 => self.panel::<S, 1>(simd, a, &depth, first),
                    2 => self.panel::<S, 2>(simd, a, &depth, first),
                    3 => self.panel::<S, 3>(simd, a, &depth, first),
                    4 => self.panel::<S, 4>(simd, a, &depth, first),
                    _ => unreachable!("panels as the machine has them"),
                }
            }
        }
    }
}

impl Product<'_> {
    /// Computes the columns of the panel that begins at column `first`.
    #[inline(always)]
    fn panel<S: Simd, const V: usize>(
        &mut self,
        simd: S,
        a: &[f32],
        depth: &Range<usize>,
        first: usize,
    ) {
        let a = vectors::<S, V>(a);
        let width = V * S::F32_LANES;
        let columns = width.min(self.columns - first);
        for row in (0..self.rows).step_by(ROWS) {
            let rows = ROWS.min(self.rows - row);
            let b = Broadcast {
                values: &self.b[row * self.strides[0] + depth.start * self.strides[1]..],
                strides: self.strides,
                rows,
            };
            let out = &mut self.out[row * self.out_stride + first..];
            if columns == width {
                tile::<S, V>(simd, a, b, out, self.out_stride, self.accumulate);
                continue;
            }
            // The last columns do not fill their panel. Compute a whole panel, then copy these
            // columns.
            let mut whole = [0.0; ROWS * PANEL];
            tile::<S, V>(simd, a, b, &mut whole, PANEL, false);
            for (out, whole) in out
                .chunks_mut(self.out_stride)
                .zip(whole.chunks(PANEL))
                .take(rows)
            {
                for (out, sum) in out.iter_mut().zip(&whole[..columns]) {
                    *out = if self.accumulate { *out + sum } else { *sum };
                }
            }
        }
    }
}

/// Some rows of the operand whose numbers are broadcast.
#[derive(Clone, Copy)]
struct Broadcast<'a> {
    values: &'a [f32],
    strides: [usize; 2],
    rows: usize,
}

#[inline(always)]
fn tile<S: Simd, const V: usize>(
    simd: S,
    a: &[[S::f32s; V]],
    b: Broadcast,
    out: &mut [f32],
    stride: usize,
    accumulate: bool,
) {
    match b.rows {
        1 | 2 => tile_of::<S, V, 2>(simd, a, b, out, stride, accumulate),
        3 | 4 => tile_of::<S, V, 4>(simd, a, b, out, stride, accumulate),
        _ => tile_of::<S, V, ROWS>(simd, a, b, out, stride, accumulate),
    }
}

/// The function must write `sums` to `out` in only one place in the code. With a second place, the
/// compiler keeps `sums` in memory instead of registers.
#[inline(always)]
fn tile_of<S: Simd, const V: usize, const R: usize>(
    simd: S,
    a: &[[S::f32s; V]],
    b: Broadcast,
    out: &mut [f32],
    stride: usize,
    accumulate: bool,
) {
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    let [down, along] = b.strides;
    if along == 1 {
        let of = |j: usize| &b.values[j.min(b.rows - 1) * down..][..a.len()];
        let b: [&[f32]; R] = std::array::from_fn(of);
        for (k, a) in a.iter().enumerate() {
            for j in 0..R {
                let b = simd.splat_f32s(b[j][k]);
                for i in 0..V {
                    sums[j][i] = simd.mul_add_e_f32s(a[i], b, sums[j][i]);
                }
            }
        }
    } else {
        for (a, b) in a.iter().zip(b.values.chunks(along)) {
            let b: &[f32; R] = b.first_chunk().expect("numbers up to an even j");
            for j in 0..R {
                let b = simd.splat_f32s(b[j]);
                for i in 0..V {
                    sums[j][i] = simd.mul_add_e_f32s(a[i], b, sums[j][i]);
                }
            }
        }
    }
    for (j, sums) in sums.iter().enumerate().take(b.rows) {
        let out = &mut vectors_mut::<S, V>(&mut out[j * stride..])[0];
        for i in 0..V {
            out[i] = if accumulate {
                simd.add_f32s(out[i], sums[i])
            } else {
                sums[i]
            };
        }
    }
}

#[inline(always)]
fn vectors<S: Simd, const V: usize>(x: &[f32]) -> &[[S::f32s; V]] {
    S::as_simd_f32s(x).0.as_chunks().0
}

#[inline(always)]
fn vectors_mut<S: Simd, const V: usize>(x: &mut [f32]) -> &mut [[S::f32s; V]] {
    S::as_mut_simd_f32s(x).0.as_chunks_mut().0
}
