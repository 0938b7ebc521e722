use std::ops::Range;

use burn::tensor::{Bool, Device, Int, Shape, Tensor, TensorData};

use super::batch::{TokenBatch, signed};
use super::packing::{Packing, Piece};
use super::reference::Reference;
use super::sequence::Sequence;
use crate::error::InvalidInput;
use crate::log_probs::{
    ComparableOutput, CountedPositions, Discrepancy, ModelOutput, PackedPositions,
    SequenceLogProbs, TokenDiscrepancy, TokenLogProbs, flat,
};

/// Sequences whose prompts stand once: a prompt, then its completions, each of which sees the
/// prompt and itself.
///
/// # When
///
/// A model runs a prompt once for each of its completions, and padding as well: twice for a pair,
/// eight times for a list of eight. Here it runs once. Log-probabilities, losses and gradients
/// are those of [`TokenBatch`], to rounding. The model has to take positions and a mask, and must
/// not look at neighbours in another way: by convolutions, states that run along the row, or
/// distances and windows counted in places of the row instead of positions.
///
/// # What to write
///
/// ```text
/// let batch = collator.batch(items, &device);                           as before
/// let packed = PackedBatch::new(batch.tokens.sequences.clone(), packing, &device)?;
/// let ours = packed.log_probs(&policy, Model::hidden_packed)?;          as many rows as before
/// ```
///
/// ```
/// use burn::tensor::Device;
/// use burn_preference::tokens::{PackedBatch, Packing, Padding, Sequence};
///
/// // A pair: the chosen completion 6 7, the rejected one 8.
/// let pair = vec![Sequence::new(&[4, 5], &[6, 7]), Sequence::new(&[4, 5], &[8])];
/// let packed = PackedBatch::new(pair, Packing::new(Padding::new(0)), &Device::default())?;
/// let ints = |tensor: burn::tensor::Tensor<2, burn::tensor::Int>| -> Vec<i64> {
///     tensor.into_data().iter().collect()
/// };
/// assert_eq!(ints(packed.ids.clone()), [4, 5, 6, 7, 8]);
/// assert_eq!(ints(packed.positions.clone()), [0, 1, 2, 3, 2]);
///
/// // True where a token must not look.
/// let mask = packed.attention_mask().into_data();
/// let last: Vec<bool> = mask.iter().skip(4 * 5).collect();
/// assert_eq!(last, [false, false, true, true, false]);
/// # Ok::<(), burn_preference::InvalidInput>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PackedBatch {
    /// Token ids, `[rows, time]`.
    pub ids: Tensor<2, Int>,
    /// The position of each token in its sequence, `[rows, time]`: every completion goes on where
    /// its prompt ends. 0 for padding.
    pub positions: Tensor<2, Int>,
    /// True for padding, `[rows, time]`.
    pub pad_mask: Tensor<2, Bool>,
    /// Prompts and completions, and the tokens that each may look at: for models that skip what a
    /// mask hides. Row by row, in the order of the tokens.
    pub segments: Vec<Segment>,
    /// The same sequences as a padded batch. Log-probabilities come in its rows.
    pub unpacked: TokenBatch,
    /// For each of `[rows, time]`, the first token of its segment, and where its prompt begins and
    /// ends: `[3, rows, time]`.
    visible: Tensor<3, Int>,
    /// For each place in the unpacked `[sequences, time]`, the place in `[rows, time]`.
    places: Tensor<1, Int>,
    /// The positions of these rows that predict a counted token.
    counted: CountedPositions,
}

/// Tokens of a row that stand together: a prompt, or a completion.
///
/// A token sees its segment up to itself; a token of a completion also sees the whole prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Segment {
    /// The row of the packed batch.
    pub row: usize,
    /// Its tokens in the row.
    pub tokens: Range<usize>,
    /// For a completion, the tokens of its prompt in the row; empty for a prompt.
    pub prompt: Range<usize>,
    /// For a completion, the place of its sequence in the batch.
    pub sequence: Option<usize>,
}

impl PackedBatch {
    /// Packs `sequences`, whatever their order.
    ///
    /// # Errors
    ///
    /// A sequence is longer than a row, an id is beyond 2³¹ − 1, or the batch, packed or not, has
    /// more than 2³¹ − 1 places for tokens.
    pub fn new(
        sequences: Vec<Sequence>,
        packing: Packing,
        device: &Device,
    ) -> Result<Self, InvalidInput> {
        let rows = packing.rows(&sequences)?;
        let shape = [rows.len(), packing.width(&rows)];
        let unpacked = packing.padding().dims(&sequences);
        for [rows, time] in [shape, unpacked] {
            if rows.saturating_mul(time) > i32::MAX as usize {
                let expected = "at most 2³¹ − 1 places for tokens";
                let found = format!("{rows} rows of {time}");
                return Err(InvalidInput::new("sequences", expected, found));
            }
        }
        let mut packed = PackedTokens::new(&sequences, shape);
        for (row, pieces) in rows.iter().enumerate() {
            packed.row(row, pieces);
        }
        let (places, predicting) = packed.places(unpacked[1]);
        let counted = CountedPositions::at(&predicting, unpacked, device)?;
        let PackedTokens {
            ids,
            positions,
            visible,
            segments,
            ..
        } = packed;
        let padded: Vec<bool> = ids.iter().map(Option::is_none).collect();
        let id = |id: Option<u32>| signed(id.unwrap_or(packing.padding().id()));
        let ids = ids.into_iter().map(id).collect::<Result<Vec<_>, _>>()?;
        let int = |values: Vec<i32>| Tensor::from_data(TensorData::new(values, shape), device);
        let visible = TensorData::new(visible.concat(), [3, shape[0], shape[1]]);
        Ok(Self {
            ids: int(ids),
            positions: int(positions),
            pad_mask: Tensor::from_data(TensorData::new(padded, shape), device),
            visible: Tensor::from_data(visible, device),
            segments,
            places: Tensor::from_data(TensorData::from(places.as_slice()), device),
            counted,
            unpacked: TokenBatch::new(sequences, packing.padding(), device)?,
        })
    }

    /// Mask of the tokens that a token may not look at, `[rows, 1, time, time]`: true in row `q` and
    /// column `k` where token `q` must not see token `k`, as Burn's attention has it. Its
    /// `mask_attn` has no second dimension: `squeeze_dim(1)`.
    ///
    /// It is built on the device. Padding sees the first token of its row and the padding before
    /// it, so that no softmax is over nothing, also where a model hides padding besides.
    pub fn attention_mask(&self) -> Tensor<4, Bool> {
        let [rows, time] = self.ids.dims();
        // Of no row as well, which an array would not expand to.
        let square = Shape::from([rows, time, time]);
        let device = self.ids.device();
        let key = Tensor::<1, Int>::arange(0..time as i64, &device);
        let query: Tensor<3, Int> = key.clone().reshape([1, time, 1]).expand(square.clone());
        let key: Tensor<3, Int> = key.reshape([1, 1, time]).expand(square.clone());
        let of_query = |which: usize| -> Tensor<3, Int> {
            let bounds: Tensor<2, Int> = self.visible.clone().narrow(0, which, 1).squeeze_dim(0);
            bounds.unsqueeze_dim::<3>(2).expand(square.clone())
        };
        let own = key.clone().greater_equal(of_query(0));
        let own = own.bool_and(key.clone().lower_equal(query));
        let prompt = key.clone().greater_equal(of_query(1));
        let prompt = prompt.bool_and(key.lower(of_query(2)));
        own.bool_or(prompt).bool_not().unsqueeze_dim(1)
    }

    /// [`TokenBatch::log_probs`] of packed rows: a sum and a length per sequence, in the order of
    /// [`unpacked`](Self::unpacked).
    ///
    /// `forward` gets the model and this batch: ids, positions, and a mask or segments. It returns
    /// logits or hidden states of [`ids`](Self::ids), and the head. The state of a prompt's last
    /// token predicts the first token of each completion. Nothing is read back.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use burn_preference::tokens::{PackedBatch, Packing, Padding, Sequence};
    /// use burn_preference::{LmHead, PolicyPair};
    ///
    /// let device = Device::default();
    /// let pair = vec![Sequence::new(&[0], &[1]), Sequence::new(&[0], &[0])];
    /// let packed = PackedBatch::new(pair, Packing::new(Padding::new(0)), &device)?;
    ///
    /// // Two words and hidden states of one number: logits (h, −h). Of the row `0 1 0` the first
    /// // state predicts both completions.
    /// let states = Tensor::<3>::from_floats([[[0.5], [7.0], [9.0]]], &device);
    /// let log_probs = packed.log_probs(&states, |states, packed| {
    ///     assert_eq!(packed.ids.dims(), [1, 3]);
    ///     (states.clone(), LmHead::new(Tensor::from_floats([[1.0], [-1.0]], &device)))
    /// })?;
    /// let pair = PolicyPair::from_concatenated(&log_probs)?;
    /// let margin = pair.chosen.sum() - pair.rejected.sum();
    /// assert!((margin.into_scalar::<f32>() - -1.0).abs() < 1e-6); // −h − h
    /// # Ok::<(), burn_preference::InvalidInput>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`TokenBatch::log_probs`].
    pub fn log_probs<M, O: ModelOutput>(
        &self,
        model: &M,
        forward: impl FnOnce(&M, &Self) -> O,
    ) -> Result<SequenceLogProbs, InvalidInput> {
        let output = forward(model, self);
        let log_probs: TokenLogProbs = output.packed(&self.packed_positions())?;
        Ok(log_probs.sequence())
    }

    /// [`TokenBatch::token_log_probs`] of packed rows, in the rows and the columns of
    /// [`unpacked`](Self::unpacked).
    ///
    /// # Errors
    ///
    /// As [`TokenBatch::log_probs`].
    pub fn token_log_probs<O: ModelOutput>(
        &self,
        output: O,
    ) -> Result<O::TokenLogProbs, InvalidInput> {
        output.packed(&self.packed_positions())
    }

    /// [`TokenBatch::discrepancy`] of packed rows, in the rows and the columns of
    /// [`unpacked`](Self::unpacked).
    ///
    /// # Errors
    ///
    /// As [`TokenDiscrepancy::from_outputs`].
    pub fn discrepancy<O: ComparableOutput>(
        &self,
        kind: Discrepancy,
        policy: O,
        reference: O,
    ) -> Result<TokenDiscrepancy, InvalidInput> {
        TokenDiscrepancy::from_packed(kind, policy, reference, &self.packed_positions())
    }

    /// [`TokenBatch::reference`] of packed rows: a [`Frozen`](crate::Frozen) model gets this batch
    /// without autodiff, and a cache is asked for the sequences of [`unpacked`](Self::unpacked).
    ///
    /// # Errors
    ///
    /// As [`TokenBatch::reference`].
    pub fn reference<M, O: ModelOutput, R: Reference<M>>(
        &self,
        reference: &R,
        forward: impl FnOnce(&M, &Self) -> O,
    ) -> Result<SequenceLogProbs, R::Error> {
        reference.answer(&self.unpacked.sequences, &self.ids.device(), |model| {
            let plain = self.without_autodiff();
            let output = forward(model, &plain).without_autodiff();
            let log_probs: TokenLogProbs = output.packed(&plain.packed_positions())?;
            Ok(log_probs.sequence())
        })
    }

    fn packed_positions(&self) -> PackedPositions {
        PackedPositions {
            dims: self.ids.dims(),
            device: self.ids.device(),
            ids: self.unpacked.ids.clone(),
            completion_mask: self.unpacked.completion_mask.clone(),
            counted: self.counted.clone(),
        }
    }

    /// From `[rows, time, width]` to `[sequences, time, width]`, the rows of
    /// [`unpacked`](Self::unpacked): differentiable, and the last token of a prompt stands in the
    /// row of each of its completions.
    ///
    /// For what takes hidden states beside the head: another head, a value. Log-probabilities
    /// need no such copy: [`log_probs`](Self::log_probs).
    /// What stands in place of padding is unspecified.
    ///
    /// # Errors
    ///
    /// `values` is not `[rows, time, …]` of this batch, or on another device.
    pub fn unpack(&self, values: Tensor<3>) -> Result<Tensor<3>, InvalidInput> {
        let [_, _, width] = values.dims();
        let flat = flat("values", values, self.ids.dims(), &self.ids.device())?;
        let [sequences, time] = self.unpacked.ids.dims();
        let rows = flat.select(0, self.places.clone());
        Ok(rows.reshape([sequences, time, width]))
    }

    /// The same batch as constants of the device without autodiff.
    fn without_autodiff(&self) -> Self {
        Self {
            ids: self.ids.clone().without_autodiff(),
            positions: self.positions.clone().without_autodiff(),
            pad_mask: self.pad_mask.clone().without_autodiff(),
            segments: self.segments.clone(),
            unpacked: self.unpacked.without_autodiff(),
            visible: self.visible.clone().without_autodiff(),
            places: self.places.clone().without_autodiff(),
            counted: self.counted.clone().map(Tensor::without_autodiff),
        }
    }

    /// The number of sequences.
    pub fn len(&self) -> usize {
        self.unpacked.len()
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.unpacked.is_empty()
    }
}

/// A packed batch under construction, on the host.
struct PackedTokens<'a> {
    sequences: &'a [Sequence],
    shape: [usize; 2],
    /// Nothing where padding is.
    ids: Vec<Option<u32>>,
    positions: Vec<i32>,
    visible: [Vec<i32>; 3],
    segments: Vec<Segment>,
    /// For each sequence, the places at which its prompt and its completion begin in `[rows, time]`.
    begins: Vec<[usize; 2]>,
}

impl<'a> PackedTokens<'a> {
    fn new(sequences: &'a [Sequence], shape: [usize; 2]) -> Self {
        let all = shape[0] * shape[1];
        Self {
            sequences,
            shape,
            ids: vec![None; all],
            positions: vec![0; all],
            visible: [vec![0; all], vec![0; all], vec![0; all]],
            segments: Vec::new(),
            begins: vec![[0; 2]; sequences.len()],
        }
    }

    fn row(&mut self, row: usize, pieces: &[Piece]) {
        let [_, time] = self.shape;
        let mut end = 0;
        for piece in pieces {
            let prompt = self.sequences[piece.members[0]].prompt();
            let of_prompt = end..end + prompt.len();
            end = of_prompt.end;
            self.segment(row, of_prompt.clone(), 0..0, None, prompt);
            for &member in &piece.members {
                let completion = self.sequences[member].completion();
                let tokens = end..end + completion.len();
                self.begins[member] = [row * time + of_prompt.start, row * time + end];
                end = tokens.end;
                self.segment(row, tokens, of_prompt.clone(), Some(member), completion);
            }
        }
        // Nobody sees padding. It sees something, so that no softmax is over nothing.
        let padding = row * time + end..(row + 1) * time;
        for (bounds, bound) in self.visible.iter_mut().zip([end, 0, end.min(1)]) {
            bounds[padding.clone()].fill(index(bound));
        }
    }

    fn segment(
        &mut self,
        row: usize,
        tokens: Range<usize>,
        prompt: Range<usize>,
        sequence: Option<usize>,
        ids: &[u32],
    ) {
        let [_, time] = self.shape;
        for (i, (t, &id)) in tokens.clone().zip(ids).enumerate() {
            let place = row * time + t;
            self.ids[place] = Some(id);
            self.positions[place] = index(prompt.len() + i);
            let visible = [tokens.start, prompt.start, prompt.end];
            for (bounds, bound) in self.visible.iter_mut().zip(visible) {
                bounds[place] = index(bound);
            }
        }
        // Without tokens there is nothing to attend to.
        if !tokens.is_empty() {
            self.segments.push(Segment {
                row,
                tokens,
                prompt,
                sequence,
            });
        }
    }

    /// For each place of the sequences, padded to `time`, its place here. And those that predict a
    /// counted token: among the predictions of the padded sequences, and here.
    fn places(&self, time: usize) -> (Vec<i32>, Vec<[usize; 2]>) {
        let mut places = Vec::with_capacity(self.sequences.len() * time);
        let mut predicting = Vec::new();
        for (row, (sequence, [prompt, completion])) in
            self.sequences.iter().zip(&self.begins).enumerate()
        {
            let before = sequence.prompt().len();
            for t in 0..time {
                let place = match t {
                    // Any will do; that of nothing may be past the last one.
                    t if t >= sequence.ids().len() => (*prompt).min(self.ids.len() - 1),
                    t if t < before => prompt + t,
                    t => completion + t - before,
                };
                places.push(index(place));
                if sequence.counts(t + 1) {
                    predicting.push([row * (time - 1) + t, place]);
                }
            }
        }
        (places, predicting)
    }
}

/// A place in a tensor of a batch.
fn index(place: usize) -> i32 {
    i32::try_from(place).expect("the number of places was checked")
}
