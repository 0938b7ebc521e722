//! Matrix products with accumulators in registers, in safe Rust.
//!
//! A register tile multiplies a few vectors of a panel with up to [`ROWS`] numbers of the other
//! operand. Each of these numbers is broadcast to a vector.

#![allow(
    clippy::inline_always,
    clippy::needless_range_loop,
    reason = "what is not inlined into `dispatch` is not vectorised, and sums that are borrowed \
              leave their registers"
)]

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::panels::{Panel, Panels};

/// Number of broadcast values that are multiplied with each vector.
const ROWS: usize = 6;
/// The same on a machine without vectors: the sums of one panel are 16 times as many numbers.
const SCALAR_ROWS: usize = 2;
/// Maximum number of terms that are summed in a register before the sum is added to the earlier
/// sums in memory. The rounding error grows with the larger of two counts: the terms of one such
/// sum, and the number of sums.
pub(super) const DEPTH: usize = 256;

/// `out[j][c] = Σ_k b[j][k]·a[k][c]`; with `accumulate`, the sum is added to `out[j][c]`.
pub(super) struct Product<'a> {
    pub panels: Panels,
    /// In panels of `columns` columns and `depth` rows.
    pub a: &'a [f32],
    pub columns: usize,
    pub depth: usize,
    pub b: Factors<'a>,
    /// Number of values of j.
    pub rows: usize,
    /// In panels of `columns` columns and `rows` rows.
    pub out: &'a mut [f32],
    pub accumulate: bool,
}

/// The operand whose numbers are broadcast, `[j][k]`.
#[derive(Clone, Copy)]
pub(super) enum Factors<'a> {
    /// Element `[j][k]` is at `j·stride + k`.
    Rows { values: &'a [f32], stride: usize },
    /// Element `[j][k]` is at `j + k·stride`.
    Columns { values: &'a [f32], stride: usize },
    /// In panels: k is a column, j is a row. There are at most [`DEPTH`] columns.
    Panels(&'a [f32]),
}

impl Product<'_> {
    pub(super) fn run(self) {
        self.panels.arch.dispatch(self);
    }
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let pieces = match self.b {
            Factors::Panels(_) => 1,
            Factors::Rows { .. } | Factors::Columns { .. } => self.depth.div_ceil(DEPTH).max(1),
        };
        // Pieces of equal length; only the last one may be shorter.
        let length = self.depth.div_ceil(pieces).max(1);
        let accumulate = self.accumulate;
        for panel in self.panels.of(self.columns) {
            for start in (0..self.depth).step_by(length) {
                let depth = start..(start + length).min(self.depth);
                self.accumulate = accumulate || start > 0;
                match panel.width / S::F32_LANES {
                    1 => self.panel::<S, 1>(simd, panel, &depth),
                    2 => self.panel::<S, 2>(simd, panel, &depth),
                    3 => self.panel::<S, 3>(simd, panel, &depth),
                    4 => self.panel::<S, 4>(simd, panel, &depth),
                    16 => self.panel::<S, 16>(simd, panel, &depth),
                    _ => unreachable!("panels as the machine has them"),
                }
            }
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    fn panel<S: Simd, const V: usize>(&mut self, simd: S, panel: Panel, depth: &Range<usize>) {
        let a = panel.of(self.a, self.depth);
        let a = vectors::<S, V>(&a[depth.start * panel.width..depth.end * panel.width]);
        let out = vectors_mut::<S, V>(panel.of_mut(self.out, self.rows));
        let widest = if S::F32_LANES == 1 { SCALAR_ROWS } else { ROWS };
        let mut b = Broadcast {
            factors: self.b,
            first: 0,
            depth: depth.clone(),
            rows: self.rows,
            panels: self.panels,
            columns: self.depth,
        };
        let mut rest = out;
        while !rest.is_empty() {
            let rows = match rest.len().min(widest) {
                3 => 2,
                5 => 4,
                rows => rows,
            };
            let (out, after) = rest.split_at_mut(rows);
            match rows {
                1 => tile::<S, V, 1>(simd, a, &b, out, self.accumulate),
                2 => tile::<S, V, 2>(simd, a, &b, out, self.accumulate),
                4 => tile::<S, V, 4>(simd, a, &b, out, self.accumulate),
                _ => tile::<S, V, ROWS>(simd, a, &b, out, self.accumulate),
            }
            b.first += rows;
            rest = after;
        }
    }
}

/// The rows of the operand whose numbers are broadcast, from `first` on.
struct Broadcast<'a> {
    factors: Factors<'a>,
    /// First j.
    first: usize,
    depth: Range<usize>,
    /// Rows and columns of the whole operand.
    rows: usize,
    columns: usize,
    panels: Panels,
}

type Sums<S, const V: usize, const R: usize> = [[<S as Simd>::f32s; V]; R];

/// `sums[j] + Σ_k b[j][k]·a[k]`. The sums go by value: the compiler keeps what is borrowed in memory
/// instead of registers.
#[inline(always)]
fn added<S: Simd, const V: usize, const R: usize>(
    simd: S,
    mut sums: Sums<S, V, R>,
    a: &[[S::f32s; V]],
    b: [&[f32]; R],
) -> Sums<S, V, R> {
    for (k, a) in a.iter().enumerate() {
        for j in 0..R {
            let b = simd.splat_f32s(b[j][k]);
            for i in 0..V {
                sums[j][i] = simd.mul_add_e_f32s(a[i], b, sums[j][i]);
            }
        }
    }
    sums
}

impl Broadcast<'_> {
    #[inline(always)]
    fn sums<S: Simd, const V: usize, const R: usize>(
        &self,
        simd: S,
        a: &[[S::f32s; V]],
    ) -> Sums<S, V, R> {
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        match self.factors {
            Factors::Rows { values, stride } => {
                let row = |j: usize| &values[(self.first + j) * stride + self.depth.start..];
                added(simd, sums, a, std::array::from_fn(|j| &row(j)[..a.len()]))
            }
            Factors::Panels(values) => {
                for panel in self.panels.of(self.columns) {
                    let of = panel.of(values, self.rows);
                    let a = &a[panel.first..a.len().min(panel.first + panel.width)];
                    let row = |j: usize| &of[(self.first + j) * panel.width..];
                    sums = added(simd, sums, a, std::array::from_fn(|j| &row(j)[..a.len()]));
                }
                sums
            }
            Factors::Columns { values, stride } => {
                let lines = values[self.depth.start * stride + self.first..].chunks(stride);
                for (a, line) in a.iter().zip(lines) {
                    let line: &[f32; R] = line.first_chunk().expect("R values of j");
                    for j in 0..R {
                        let b = simd.splat_f32s(line[j]);
                        for i in 0..V {
                            sums[j][i] = simd.mul_add_e_f32s(a[i], b, sums[j][i]);
                        }
                    }
                }
                sums
            }
        }
    }
}

#[inline(always)]
fn tile<S: Simd, const V: usize, const R: usize>(
    simd: S,
    a: &[[S::f32s; V]],
    b: &Broadcast,
    out: &mut [[S::f32s; V]],
    accumulate: bool,
) {
    let sums = b.sums::<S, V, R>(simd, a);
    for (out, sums) in out.iter_mut().zip(&sums) {
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
