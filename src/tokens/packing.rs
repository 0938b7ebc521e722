use std::collections::HashMap;

use super::batch::Padding;
use super::sequence::Sequence;
use crate::error::InvalidInput;

/// Packing, which makes the rows of a [`PackedBatch`](super::PackedBatch) of sequences that share
/// prompts.
///
/// Sequences whose prompts are the same ids from first to last, and whose contexts are the same, are
/// a group, wherever they stand in the batch: the two sides of a pair, a list. A group is its
/// prompt, once, and its completions one after the other. Prompts that were cut to different lengths
/// are different prompts: cut all completions of a row with the same prompt, as
/// [`Truncation`](crate::data::Truncation) does.
///
/// ```text
/// one group a row     P P P a a b b b · ·        padded to the longest group
///                     Q Q c c c c d d d d
/// rows of 18 tokens   Q Q c c c c d d d d P P P a a b b b
/// ```
///
/// The number of rows is that of first-fit decreasing: the longest group first, into the first row
/// that has room. The groups are then spread over that many rows, the longest first into the
/// emptiest one, so that little is padded; they stay where they are if that would make rows longer.
///
/// The same sequences always give the same rows, and log-probabilities come in the order of the
/// sequences, whatever the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    padding: Padding,
    row_length: Option<usize>,
}

/// A group that stands together in a row, or a part of one.
pub(super) struct Piece {
    /// Places of its sequences in the batch.
    pub members: Vec<usize>,
    /// Number of tokens of prompt and completions.
    pub tokens: usize,
}

impl Packing {
    /// Packs a row per prompt. Rows are padded to the longest one as `padding` says.
    pub fn new(padding: Padding) -> Self {
        Self {
            padding,
            row_length: None,
        }
    }

    /// Puts several groups into a row of `tokens` tokens at most, rounded down to the multiple that the
    /// padding asks for. A group that is longer takes several rows, each with the prompt again and
    /// the longest completions first.
    ///
    /// With a dense mask, attention over a row costs the square of its length: the best length is
    /// then a little above that of the longest group. It may be larger for a model that skips what
    /// the mask hides.
    ///
    /// # Errors
    ///
    /// `tokens` is less than 2, which predict nothing, or less than that multiple.
    pub fn to_rows_of(self, tokens: usize) -> Result<Self, InvalidInput> {
        let least = self.padding.width(0);
        if tokens < least {
            let expected = format!("{least} at least");
            return Err(InvalidInput::new("row_length", expected, tokens));
        }
        Ok(Self {
            row_length: Some(self.padding.round_down(tokens)),
            ..self
        })
    }

    /// Number of rows and their length, once these sequences are packed: the cost of a batch.
    ///
    /// # Errors
    ///
    /// A sequence is longer than a row.
    pub fn dims(&self, sequences: &[Sequence]) -> Result<[usize; 2], InvalidInput> {
        let rows = self.rows(sequences)?;
        Ok([rows.len(), self.width(&rows)])
    }

    pub(super) fn padding(&self) -> Padding {
        self.padding
    }

    pub(super) fn width(&self, rows: &[Vec<Piece>]) -> usize {
        let length = |row: &Vec<Piece>| row.iter().map(|piece| piece.tokens).sum();
        self.padding
            .width(rows.iter().map(length).max().unwrap_or(0))
    }

    /// Rows of pieces, whose sequences stand together.
    pub(super) fn rows(&self, sequences: &[Sequence]) -> Result<Vec<Vec<Piece>>, InvalidInput> {
        let mut pieces = self.pieces(sequences)?;
        let Some(row_length) = self.row_length else {
            return Ok(pieces.into_iter().map(|piece| vec![piece]).collect());
        };
        // Stable: of equal ones, the first.
        pieces.sort_by_key(|piece| std::cmp::Reverse(piece.tokens));
        let tokens: Vec<usize> = pieces.iter().map(|piece| piece.tokens).collect();
        let (first_fit, filled) = first_fit(&tokens, row_length);
        let (even, evenly) = emptiest(&tokens, filled.len());
        let longest = |filled: &[usize]| filled.iter().max().copied();
        let places = if longest(&evenly) <= longest(&filled) {
            even
        } else {
            first_fit
        };
        let mut rows: Vec<Vec<Piece>> = filled.iter().map(|_| Vec::new()).collect();
        for (piece, row) in pieces.into_iter().zip(places) {
            rows[row].push(piece);
        }
        Ok(rows)
    }

    /// The groups in the order of their first sequences, cut where they are longer than a row.
    fn pieces(&self, sequences: &[Sequence]) -> Result<Vec<Piece>, InvalidInput> {
        let row_length = self.row_length.unwrap_or(usize::MAX);
        let length = |&place: &usize| sequences[place].ids().len();
        if let Some(place) = (0..sequences.len()).find(|place| length(place) > row_length) {
            let expected = format!("at most {row_length} tokens, a row");
            let found = format!("{} at [{place}]", length(&place));
            return Err(InvalidInput::new("sequences", expected, found));
        }
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut known: HashMap<(&[u32], Option<&[u8; 32]>), usize> = HashMap::new();
        for (place, sequence) in sequences.iter().enumerate() {
            let key = (sequence.prompt(), sequence.context());
            let group = *known.entry(key).or_insert(groups.len());
            if group == groups.len() {
                groups.push(Vec::new());
            }
            groups[group].push(place);
        }
        let mut pieces = Vec::with_capacity(groups.len());
        for mut members in groups {
            let prompt = sequences[members[0]].prompt().len();
            let completion = |place: usize| length(&place) - prompt;
            let tokens = prompt + members.iter().map(|&i| completion(i)).sum::<usize>();
            if tokens <= row_length {
                pieces.push(Piece { members, tokens });
                continue;
            }
            members.sort_by_key(|&place| std::cmp::Reverse(completion(place)));
            let lengths: Vec<usize> = members.iter().map(|&i| completion(i)).collect();
            let (places, filled) = first_fit(&lengths, row_length - prompt);
            let first = pieces.len();
            pieces.extend(filled.iter().map(|completions| Piece {
                members: Vec::new(),
                tokens: prompt + completions,
            }));
            for (member, place) in members.into_iter().zip(places) {
                pieces[first + place].members.push(member);
            }
        }
        Ok(pieces)
    }
}

/// The row of each piece, and the tokens of the rows: the first row with space for it.
fn first_fit(pieces: &[usize], row_length: usize) -> (Vec<usize>, Vec<usize>) {
    let mut filled: Vec<usize> = Vec::new();
    let place = |&tokens: &usize| {
        let row = filled.iter().position(|row| row + tokens <= row_length);
        let row = row.unwrap_or(filled.len());
        if row == filled.len() {
            filled.push(0);
        }
        filled[row] += tokens;
        row
    };
    let places = pieces.iter().map(place).collect();
    (places, filled)
}

/// The same for a number of rows: the one that holds least, of equal ones the first.
fn emptiest(pieces: &[usize], rows: usize) -> (Vec<usize>, Vec<usize>) {
    let mut filled = vec![0; rows];
    let place = |&tokens: &usize| {
        let row = (0..rows).min_by_key(|&row| filled[row]).unwrap_or(0);
        filled[row] += tokens;
        row
    };
    let places = pieces.iter().map(place).collect();
    (places, filled)
}
