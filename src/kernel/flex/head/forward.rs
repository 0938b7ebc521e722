//! Log-probabilities, and the logits that a backward may use again.

use std::ops::Range;

use burn::backend::Flex;
use rayon::prelude::*;

use super::buffers::{Aligned, Pool, split};
use super::panels::padded;
use super::problem::{Problem, TASKS};
use super::words::Block;
use crate::kernel::flex::partial::{RowState, outputs};
use crate::kernel::forward::Forward;

/// Results of rows that one forward holds: one for each row and segment.
const STATES: usize = 1 << 16;
/// Bytes of one buffer of kept logits. An allocation of this size is returned to the system as soon
/// as the backward has used it.
const KEPT_BYTES: usize = 32 << 20;

/// The tasks of a forward: one for each segment of the vocabulary and each group of blocks.
pub(super) struct Grid {
    /// Ranges of chunks.
    pub segments: Vec<Range<usize>>,
    /// Ranges of blocks.
    pub groups: Vec<Range<usize>>,
}

/// Cuts `0..len` into `parts` ranges at most.
pub(super) fn ranges(len: usize, parts: usize) -> Vec<Range<usize>> {
    let step = len.div_ceil(parts.max(1)).max(1);
    let starts = (0..len).step_by(step);
    starts.map(|start| start..(start + step).min(len)).collect()
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

    /// Chunks of each buffer of kept logits, if the first `kept` chunks are kept.
    fn kept_chunks(&self, kept: usize) -> Vec<Range<usize>> {
        if self.shares_buffer() {
            return ranges(kept, 1);
        }
        let of_chunk = size_of::<f32>() * self.logits_of(&(0..1));
        let chunks = KEPT_BYTES.div_ceil(of_chunk.max(1));
        ranges(kept, kept.div_ceil(chunks))
    }

    /// A buffer for the logits of some chunks, with the room that the backward wants before it.
    fn kept_buffer(&self, chunks: &Range<usize>) -> Aligned {
        let room = if self.shares_buffer() {
            self.room_before(chunks)
        } else {
            0
        };
        Aligned::after(room, self.logits_of(chunks))
    }

    /// Log-probabilities, and the logits of as many first chunks as fit into `bytes`.
    pub(crate) fn forward(&self, bytes: usize, statistics: bool) -> Forward<Flex> {
        let of_chunk = size_of::<f32>() * self.logits_of(&(0..1));
        let kept = (bytes / of_chunk.max(1)).min(self.chunks());
        let kept = self.kept_chunks(kept);
        let mut tiles: Vec<Aligned> = kept.iter().map(|chunks| self.kept_buffer(chunks)).collect();
        // The room for the logits of each chunk that is kept.
        let mut rooms = kept.iter().zip(&mut tiles).flat_map(|(chunks, tiles)| {
            let lens = chunks
                .clone()
                .map(|chunk| self.logits_of(&(chunk..chunk + 1)));
            split(tiles.get_mut(), lens)
        });

        let grid = Grid::new(self, (STATES / self.rows.max(1)).clamp(32, 256), usize::MAX);
        let mut states = vec![RowState::EMPTY; grid.segments.len() * self.rows];
        let mut parts = split(
            &mut states,
            grid.tasks().map(|(_, group)| self.rows_of(&group)),
        )
        .into_iter();
        let mut tasks = Vec::new();
        for segment in &grid.segments {
            let mut kept: Vec<Vec<&mut [f32]>> = grid.groups.iter().map(|_| Vec::new()).collect();
            for (chunk, room) in segment.clone().zip(&mut rooms) {
                let words = self.words_of(chunk).len();
                let lens = grid
                    .groups
                    .iter()
                    .map(|group| words * padded(self.rows_of(group)));
                for (kept, room) in kept.iter_mut().zip(split(room, lens)) {
                    kept.push(room);
                }
            }
            for (group, kept) in grid.groups.iter().zip(kept) {
                let states = parts.next().expect("one for each task");
                tasks.push((segment.clone(), group.clone(), kept, states));
            }
        }
        drop(rooms);
        let scratch = Pool::new(self.largest_tile());
        tasks
            .into_par_iter()
            .for_each(|(chunks, group, kept, states)| {
                let mut kept = kept.into_iter();
                self.each_chunk(chunks, |words, weight| {
                    let kept = kept.next();
                    self.observe_chunk(words, weight, &group, kept, &scratch, states, statistics);
                });
            });
        let rows = combined(self.rows, &states);
        Forward {
            tiles: tiles.into_iter().map(Aligned::into_tensor).collect(),
            ..outputs(&rows, &self.targets, self.vocab, statistics)
        }
    }

    /// Computes the tiles of a chunk and a group of blocks, and adds their results to `states`.
    /// The logits stay in `kept`, if they have room there.
    #[allow(clippy::too_many_arguments, reason = "a task has all of them")]
    fn observe_chunk(
        &self,
        words: &Range<usize>,
        weight: Block,
        group: &Range<usize>,
        kept: Option<&mut [f32]>,
        scratch: &Pool,
        states: &mut [RowState],
        statistics: bool,
    ) {
        let blocks = &self.blocks[group.clone()];
        let first = blocks[0].start;
        let lens = blocks.iter().map(|block| words.len() * padded(block.len()));
        let mut kept = kept.map(|kept| split(kept, lens).into_iter());
        for block in blocks {
            let states = &mut states[block.start - first..block.end - first];
            let mut observe = |tile: &mut [f32]| {
                self.logits(weight, block, words, tile);
                self.observe(block, words, tile, states, statistics);
            };
            match kept.as_mut().and_then(Iterator::next) {
                Some(tile) => observe(tile),
                None => scratch.with(|tile| {
                    observe(&mut tile[..words.len() * padded(block.len())]);
                }),
            }
        }
    }
}
