//! Panels: matrices whose columns are the lanes of vectors.
//!
//! A matrix of `rows` × `columns` in panels is `[panel][row][lane]`. Its columns are cut into
//! panels of up to four vectors, and each panel is read from front to back.

use pulp::Arch;

pub(super) use crate::kernel::flex::elementwise::LANES;

/// `columns`, rounded up to a multiple of [`LANES`]. The columns after the last one are padding.
pub(super) fn padded(columns: usize) -> usize {
    columns.next_multiple_of(LANES)
}

/// The columns of one panel. The columns after the last one of the matrix are padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Panel {
    /// Place of the first column in the matrix.
    pub first: usize,
    /// Number of lanes, a multiple of [`LANES`].
    pub width: usize,
}

impl Panel {
    /// The numbers of the panel in a matrix of `rows` rows.
    pub(super) fn of(self, matrix: &[f32], rows: usize) -> &[f32] {
        &matrix[self.first * rows..][..self.width * rows]
    }

    /// As [`Self::of`].
    pub(super) fn of_mut(self, matrix: &mut [f32], rows: usize) -> &mut [f32] {
        &mut matrix[self.first * rows..][..self.width * rows]
    }
}

/// The vectors of a machine, and how columns are cut into panels for them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panels {
    pub arch: Arch,
    /// Maximum number of lanes of a panel. Sums of a panel must fit into the registers.
    widest: usize,
}

impl Panels {
    pub(super) fn new(arch: Arch) -> Self {
        let widest = match arch {
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            Arch::V4(_) => 4 * LANES,
            _ => LANES,
        };
        Self { arch, widest }
    }

    /// The panels of a matrix, as equal as possible.
    pub(super) fn of(self, columns: usize) -> impl Iterator<Item = Panel> {
        let vectors = columns.div_ceil(LANES);
        let panels = columns.div_ceil(self.widest);
        let start = move |panel: usize| panel * vectors / panels * LANES;
        (0..panels).map(move |panel| Panel {
            first: start(panel),
            width: start(panel + 1) - start(panel),
        })
    }

    /// Writes rows of `columns` numbers, which start every `stride` numbers, in panels.
    pub(super) fn pack(self, rows: &[f32], columns: usize, out: &mut [f32]) {
        let count = rows.len() / columns;
        for panel in self.of(columns) {
            let lines = panel.of_mut(out, count).chunks_exact_mut(panel.width);
            for (row, out) in rows.chunks_exact(columns).zip(lines) {
                let row = &row[panel.first..columns.min(panel.first + panel.width)];
                out[..row.len()].copy_from_slice(row);
            }
        }
    }

    /// Writes the transposed matrix in panels: its columns are the `rows` of `depth` numbers.
    pub(super) fn pack_transposed(self, rows: &[f32], depth: usize, out: &mut [f32]) {
        for panel in self.of(rows.len() / depth) {
            let out = panel.of_mut(out, depth);
            let rows = rows[panel.first * depth..].chunks_exact(depth);
            for (lane, row) in rows.take(panel.width).enumerate() {
                for (out, x) in out[lane..].iter_mut().step_by(panel.width).zip(row) {
                    *out = *x;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LANES, Panels, padded};
    use pulp::Arch;

    #[test]
    fn panels_follow_each_other() {
        let panels = Panels::new(Arch::new());
        for columns in 0..300 {
            let mut next = 0;
            for panel in panels.of(columns) {
                assert_eq!(panel.first, next);
                assert!(panel.width >= LANES && panel.width.is_multiple_of(LANES));
                assert!(panel.width <= panels.widest);
                next += panel.width;
            }
            assert_eq!(next, padded(columns), "{columns} columns");
        }
    }

    #[test]
    fn both_ways_to_pack() {
        let panels = Panels::new(Arch::new());
        let (rows, columns) = (5, 83);
        let matrix: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let transposed: Vec<f32> = (0..rows * columns)
            .map(|i| matrix[i % rows * columns + i / rows])
            .collect();
        let mut packed = vec![0.0; padded(columns) * rows];
        let mut of_transposed = packed.clone();
        panels.pack(&matrix, columns, &mut packed);
        panels.pack_transposed(&transposed, rows, &mut of_transposed);
        assert_eq!(packed, of_transposed);
        for panel in panels.of(columns) {
            let lines = panel.of(&packed, rows).chunks_exact(panel.width);
            for (row, line) in lines.enumerate() {
                for (lane, x) in line.iter().enumerate() {
                    let column = panel.first + lane;
                    let inside = column < columns;
                    let expected = if inside {
                        matrix[row * columns + column]
                    } else {
                        0.0
                    };
                    assert_eq!(*x, expected);
                }
            }
        }
    }
}
