//! Log-probabilities, and the logits that a backward may use again.

use std::ops::Range;

use burn::backend::Flex;
use burn::tensor::{DType, bf16, f16};
use rayon::prelude::*;

use super::buffers::{Pool, ranges, split};
use super::gradient::{Number, Part};
use super::kept::Kept;
use super::panels::padded;
use super::problem::{Problem, TASKS};
use super::words::Block;
use crate::kernel::flex::partial::{RowState, outputs};
use crate::kernel::forward::Forward;

/// Results of rows that one forward holds: one for each row and segment.
const STATES: usize = 1 << 16;

/// The tasks of a forward: one for each segment of the vocabulary and each group of blocks.
pub(super) struct Grid {
    /// Ranges of chunks.
    pub segments: Vec<Range<usize>>,
    /// Ranges of blocks.
    pub groups: Vec<Range<usize>>,
}

impl Grid {
    /// At most `segments` segments, and so many groups that there are [`TASKS`] tasks.
    pub(super) fn new(problem: &Problem, segments: usize, group: usize) -> Self {
        let segments = ranges(problem.chunks(), segments);
        let blocks = problem.blocks.len();
        let groups = TASKS.div_ceil(segments.len().max(1));
        let groups = ranges(blocks, groups.max(blocks.div_ceil(group)));
        Self { segments, groups }
    }

    /// Segment and group of every task.
    pub(super) fn tasks(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let groups = |segment: &Range<usize>| {
            let segment = segment.clone();
            let groups = self.groups.iter().cloned();
            groups.map(move |group| (segment.clone(), group))
        };
        self.segments.iter().flat_map(groups)
    }
}

/// Adds the results of several segments to the results of the rows, in the order of the segments.
pub(super) fn combined(rows: usize, states: &[RowState]) -> Vec<RowState> {
    let mut all = vec![RowState::EMPTY; rows];
    for segment in states.chunks(rows.max(1)) {
        for (all, part) in all.iter_mut().zip(segment) {
            *all = all.and(*part);
        }
    }
    all
}

impl Problem {
    /// Count of the rows of some blocks.
    pub(super) fn rows_of(&self, blocks: &Range<usize>) -> usize {
        self.blocks[blocks.clone()].iter().map(Range::len).sum()
    }

    /// Log-probabilities, and the logits of as many first chunks as fit into `bytes`.
    pub(crate) fn forward(&self, bytes: usize, statistics: bool) -> Forward<Flex> {
        match self.dtype {
            DType::F16 => self.forward_as::<f16>(bytes, statistics),
            DType::BF16 => self.forward_as::<bf16>(bytes, statistics),
            _ => self.forward_as::<f32>(bytes, statistics),
        }
    }

    fn forward_as<N: Number>(&self, bytes: usize, statistics: bool) -> Forward<Flex> {
        let segments = (STATES / self.rows.max(1)).clamp(32, 256);
        let segments = ranges(self.chunks(), segments);
        let mut kept = Kept::<N>::with_room(self, bytes);
        let mut states = vec![RowState::EMPTY; segments.len() * self.rows];
        let scratch = Pool::new(self.largest_tile());
        states
            .par_chunks_mut(self.rows.max(1))
            .zip(&segments)
            .zip(kept.rooms(self, &segments))
            .for_each(|((states, chunks), mut rooms)| {
                self.each_chunk(chunks.clone(), |words, weight| {
                    let rooms = rooms.next(self, words.len());
                    self.observe_chunk(words, weight, rooms, &scratch, states, statistics);
                });
            });
        let rows = combined(self.rows, &states);
        Forward {
            tiles: kept.into_tensors(self),
            ..outputs(&rows, &self.targets, self.vocab, statistics)
        }
    }

    /// Computes the tiles of a chunk, and adds their results to `states`. The logits of a block stay
    /// in its room, if it has one.
    fn observe_chunk<N: Number>(
        &self,
        words: &Range<usize>,
        weight: Block,
        rooms: Vec<Option<Part<N>>>,
        scratch: &Pool,
        states: &mut [RowState],
        statistics: bool,
    ) {
        split(states, self.blocks.iter().map(Range::len))
            .into_par_iter()
            .zip(&self.blocks)
            .zip(rooms)
            .for_each(|((states, block), mut room)| {
                let mut observe = |tile: &mut [f32]| {
                    self.logits(weight, block, words, tile);
                    self.observe(block, words, tile, states, statistics);
                };
                if let Some(tile) = room.as_mut().and_then(Part::as_tile) {
                    return observe(tile);
                }
                scratch.with(|tile| {
                    let tile = &mut tile[..words.len() * padded(block.len())];
                    observe(tile);
                    if let Some(room) = room {
                        room.hold(words.len(), tile);
                    }
                });
            });
    }
}
