//! Passes over a tile of logits. Each lane of a vector is one row, so no pass needs a sum across
//! the lanes of a vector.

#![allow(
    clippy::inline_always,
    clippy::needless_range_loop,
    reason = "only what is inlined into `dispatch` is vectorised; lanes have a number"
)]

use pulp::{Arch, Simd, WithSimd};

use super::panels::{LANES, Panel};
use crate::kernel::flex::elementwise::{shift, terms, turned};
use crate::kernel::flex::partial::Partial;
use crate::kernel::forward::STATISTICS;

/// Number of words that are summed in f32. The f32 sum is then added to a sum in f64.
const PIECE: usize = 96;

struct Observe<'a, const BY_PRODUCTS: bool> {
    tile: &'a [f32],
    width: usize,
    at_least: [f32; LANES],
}

impl<const BY_PRODUCTS: bool> WithSimd for Observe<'_, BY_PRODUCTS> {
    type Output = [Partial; LANES];

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> [Partial; LANES] {
        let mut max = self.at_least;
        let mut first = [u32::MAX; LANES];
        let lines = || {
            self.tile
                .chunks(self.width)
                .filter_map(<[f32]>::first_chunk::<LANES>)
        };
        for (word, line) in (0..).zip(lines()) {
            for l in 0..LANES {
                let larger = line[l] > max[l];
                max[l] = if larger { line[l] } else { max[l] };
                if BY_PRODUCTS {
                    first[l] = if larger { word } else { first[l] };
                }
            }
        }
        let shifts = max.map(shift);
        let mut sums = [[0.0_f32; LANES]; STATISTICS];
        let used = if BY_PRODUCTS { STATISTICS } else { 1 };
        for line in lines() {
            for l in 0..LANES {
                let terms = terms::<BY_PRODUCTS>(line[l], shifts[l]);
                for (sums, term) in sums.iter_mut().zip(terms).take(used) {
                    sums[l] += term;
                }
            }
        }
        std::array::from_fn(|l| {
            let first = (first[l] != u32::MAX).then_some(first[l] as usize);
            Partial::new(max[l], first, sums.map(|sums| sums[l].into()))
        })
    }
}

/// Reduces the logits of [`LANES`] rows. The largest logit of each row so far is `at_least`. The
/// lines of `tile` (one for each word) start every `width` numbers.
pub(super) fn observe(
    arch: Arch,
    tile: &[f32],
    width: usize,
    at_least: [f32; LANES],
    statistics: bool,
) -> [Partial; LANES] {
    let mut partials = at_least.map(|max| Partial::new(max, None, [0.0; STATISTICS]));
    for (index, tile) in tile.chunks(PIECE * width).enumerate() {
        let at_least = partials.map(|partial| partial.max);
        let more = if statistics {
            arch.dispatch(Observe::<true> {
                tile,
                width,
                at_least,
            })
        } else {
            arch.dispatch(Observe::<false> {
                tile,
                width,
                at_least,
            })
        };
        for (partial, more) in partials.iter_mut().zip(more) {
            *partial = partial.and(more.starting_at(index * PIECE));
        }
    }
    partials
}

/// Numbers for each row of a block, padded to whole vectors.
#[derive(Debug, Clone)]
pub(super) struct PerRow {
    pub max: Vec<f32>,
    pub log_sum: Vec<f32>,
    pub factor: Vec<f32>,
}

struct Turn<'a, const BENT: bool> {
    tile: &'a mut [f32],
    max: &'a [f32],
    log_sum: &'a [f32],
    factor: &'a [f32],
    bend: f32,
}

impl<const BENT: bool> WithSimd for Turn<'_, BENT> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for line in self.tile.chunks_exact_mut(self.max.len()) {
            let numbers = self.max.iter().zip(self.log_sum).zip(self.factor);
            for (x, ((max, log_sum), factor)) in line.iter_mut().zip(numbers) {
                *x = turned::<BENT>(*x, [*max, *log_sum], *factor, self.bend);
            }
        }
    }
}

/// Turns the logits of a panel of a block into `factor · exp((x − max) − log_sum)`. If `bend` (u) is
/// not 0, the result is also multiplied by `1 − (u·x)²`, which comes from the derivative of a
/// softcap.
pub(super) fn turn(arch: Arch, tile: &mut [f32], panel: Panel, of: &PerRow, bend: f32) {
    let lanes = panel.first..panel.first + panel.width;
    let [max, log_sum, factor] =
        [&of.max, &of.log_sum, &of.factor].map(|numbers| &numbers[lanes.clone()]);
    if bend == 0.0 {
        arch.dispatch(Turn::<false> {
            tile,
            max,
            log_sum,
            factor,
            bend,
        });
    } else {
        arch.dispatch(Turn::<true> {
            tile,
            max,
            log_sum,
            factor,
            bend,
        });
    }
}
