//! Rows in which prompts stand once: the layout, and that nothing else changes.

use std::collections::{HashMap, HashSet};

use burn::data::dataloader::{BatchStrategy, DataLoader, batcher::Batcher};
use burn::data::dataset::{Dataset, DatasetError, InMemDataset};
use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::transformer::{
    TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput,
};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Bool, Device, Gradients, Int, Tensor, TensorData};
use burn_preference::data::{
    Collator, Cursor, EpochLoader, Example, Mismatched, PairTokens, Preference, RankedTokens,
    TokenBudget, Truncation, UnpairedTokens, WithMismatched,
};
use burn_preference::log_probs::{Discrepancy, WithStatistics};
use burn_preference::tokens::{PackedBatch, Packing, Padding, Sequence, TokenBatch, TokenTensors};
use burn_preference::training::first_batch::{Finding, FirstBatch};
use burn_preference::{
    DpoLossConfig, Frozen, InvalidInput, LmHead, Objective, RrhfLossConfig, SequenceLogProbs,
};
use proptest::prelude::*;
use std::sync::Arc;

use crate::support::device::device;
use crate::support::llama::{Llama, LlamaConfig, Visible};
use crate::support::{ZipEqual, cases, to_vec, with_sum};

const VOCAB: usize = 23;

fn padding() -> Padding {
    Padding::new(0)
}

fn pack(sequences: &[Sequence], packing: Packing) -> PackedBatch {
    PackedBatch::new(sequences.to_vec(), packing, &device()).unwrap()
}

fn rows_of(tokens: usize) -> Packing {
    Packing::new(padding()).to_rows_of(tokens).unwrap()
}

fn ints<const D: usize>(tensor: &Tensor<D, Int>) -> Vec<i64> {
    tensor.to_data().iter().collect()
}

fn bools<const D: usize>(tensor: Tensor<D, Bool>) -> Vec<bool> {
    tensor.into_data().iter().collect()
}

#[test]
fn a_prompt_stands_once() {
    let of = |prompt: &[u32], completion: &[u32]| Sequence::new(prompt, completion);
    // Chosen, then rejected: two prompts, each in two places.
    let pairs = [
        of(&[1, 2], &[3]),
        of(&[4], &[5, 6]),
        of(&[1, 2], &[7, 8]),
        of(&[4], &[9]),
    ];
    let packed = pack(&pairs, Packing::new(padding()));
    assert_eq!(ints(&packed.ids), [1, 2, 3, 7, 8, 4, 5, 6, 9, 0]);
    assert_eq!(ints(&packed.positions), [0, 1, 2, 2, 3, 0, 1, 2, 1, 0]);
    let pads: Vec<usize> = (0..10)
        .filter(|&i| bools(packed.pad_mask.clone())[i])
        .collect();
    assert_eq!(pads, [9]);
    let segments: Vec<_> = packed
        .segments
        .iter()
        .map(|s| (s.row, s.tokens.clone(), s.prompt.clone(), s.sequence))
        .collect();
    assert_eq!(
        segments,
        [
            (0, 0..2, 0..0, None),
            (0, 2..3, 0..2, Some(0)),
            (0, 3..5, 0..2, Some(2)),
            (1, 0..1, 0..0, None),
            (1, 1..3, 0..1, Some(1)),
            (1, 3..4, 0..1, Some(3)),
        ]
    );
    // One row: the longer group first.
    let one = pack(&pairs, rows_of(9));
    assert_eq!(ints(&one.ids), [1, 2, 3, 7, 8, 4, 5, 6, 9]);
    assert_eq!(ints(&one.positions), [0, 1, 2, 2, 3, 0, 1, 2, 1]);
    // Too short for both groups, and for a whole one: the prompt stands twice.
    assert_eq!(rows_of(8).dims(&pairs).unwrap(), [2, 5]);
    let cut = pack(&pairs, rows_of(4));
    assert_eq!(ints(&cut.ids), [1, 2, 7, 8, 4, 5, 6, 9, 1, 2, 3, 0]);
    assert_eq!(ints(&cut.unpacked.ids), ints(&one.unpacked.ids));
    let error = PackedBatch::new(pairs.to_vec(), rows_of(3), &device()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`sequences`: expected at most 3 tokens, a row, found 4 at [2]"
    );
    assert_eq!(rows_of(3).dims(&pairs).unwrap_err(), error);
    let error = Packing::new(padding()).to_rows_of(1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`row_length`: expected 2 at least, found 1"
    );
    let eight = Packing::new(padding().to_multiple_of(8).unwrap());
    assert_eq!(eight.to_rows_of(23).unwrap(), eight.to_rows_of(16).unwrap());
    let error = eight.to_rows_of(7).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`row_length`: expected 8 at least, found 7"
    );
    let wide = [of(&[1 << 31], &[1])];
    let error = PackedBatch::new(wide.to_vec(), rows_of(9), &device()).unwrap_err();
    assert_eq!(error.name(), "tokens");

    // As few rows as the first that has room makes, 6 + 5 and 4 + 3, and none longer than needed.
    let four = [6_u32, 5, 4, 3].map(|n| of(&[n], &vec![n; n as usize - 1]));
    assert_eq!(rows_of(12).dims(&four).unwrap(), [2, 9]);
    // An even spread is 3 2 2 and 3 2, longer than 3 3 and 2 2 2.
    let five = [3_usize, 3, 2, 2, 2].into_iter().zip(1..);
    let five: Vec<_> = five.map(|(n, id)| of(&[id], &vec![9; n - 1])).collect();
    assert_eq!(rows_of(6).dims(&five).unwrap(), [2, 6]);

    // A prompt that fills a row, alone and but for one token; where it is cut, the longest first.
    let full = [of(&[1; 8], &[]), of(&[1; 7], &[2]), of(&[1; 7], &[])];
    assert_eq!(pack(&full, rows_of(8)).ids.dims(), [2, 8]);
    let list = [&[1][..], &[4; 4], &[3; 3], &[2; 2]].map(|ids| of(&[5, 5], ids));
    let cut = pack(&list, rows_of(7));
    assert_eq!(ints(&cut.ids), [5, 5, 4, 4, 4, 4, 1, 5, 5, 3, 3, 3, 2, 2]);

    // Another context is another prompt.
    let seen = [of(&[1], &[2]).with_context([1; 32]), of(&[1], &[3])];
    assert_eq!(pack(&seen, Packing::new(padding())).ids.dims(), [2, 2]);
    // Multiples, and no sequence at all.
    assert_eq!(eight.dims(&pairs).unwrap(), [2, 8]);
    let none = pack(&[], rows_of(9));
    assert!(none.is_empty() && none.segments.is_empty());
    assert_eq!(none.attention_mask().dims(), [0, 1, 2, 2]);
}

/// Groups of sequences: a prompt and completions, of any lengths, with or without marks.
fn groups(prompt: std::ops::Range<usize>, most: usize) -> impl Strategy<Value = Vec<Sequence>> {
    let ids = |n: std::ops::Range<usize>| prop::collection::vec(1_u32..23, n);
    let completion = (ids(0..6), any::<bool>());
    let group = (ids(prompt), prop::collection::vec(completion, 1..=most));
    let groups = prop::collection::vec(group, 1..4).prop_map(|groups| {
        let mut sequences = Vec::new();
        for (prompt, completions) in &groups {
            for (completion, marked) in completions {
                let marks: Vec<bool> = (0..completion.len())
                    .map(|i| !marked || i % 2 == 0)
                    .collect();
                let sequence = Sequence::new(prompt, completion);
                sequences.push(sequence.with_counted(&marks).unwrap());
            }
        }
        sequences
    });
    // In any order: chosen sides before rejected ones, lists together.
    groups.prop_shuffle()
}

proptest! {
    #![proptest_config(cases(150))]

    /// Every token stands where the segments say, sees what its sequence has before it and nothing
    /// else, and rows keep to their length.
    #[test]
    fn tokens_see_their_sequence(sequences in groups(0..5, 4), length in prop::option::of(11_usize..30)) {
        let packing = length.map_or(Packing::new(padding()), rows_of);
        let packed = pack(&sequences, packing);
        let [rows, time] = packed.ids.dims();
        prop_assert_eq!(packing.dims(&sequences).unwrap(), [rows, time]);
        prop_assert!(length.is_none_or(|length| time <= length));
        let (ids, positions) = (ints(&packed.ids), ints(&packed.positions));
        let hidden = bools(packed.attention_mask());
        let pads = bools(packed.pad_mask.clone());
        let unpacked = packed.unpack(Tensor::<1>::from_data(
            TensorData::from(&*(0..rows * time).map(|i| i as f32).collect::<Vec<_>>()), &device(),
        ).reshape([rows, time, 1])).unwrap();
        let [_, wide, _] = unpacked.dims();
        let places = unpacked.int().into_data();
        let places: Vec<usize> = places.iter::<i64>().map(|i| usize::try_from(i).unwrap()).collect();
        let mut seen = HashSet::new();
        let prompts: HashSet<&[u32]> = sequences.iter().map(Sequence::prompt).collect();
        let mut used: HashMap<&[u32], HashSet<usize>> = HashMap::new();
        for (s, sequence) in sequences.iter().enumerate() {
            let places = &places[s * wide..][..sequence.ids().len()];
            for (t, &place) in places.iter().enumerate() {
                prop_assert_eq!(ids[place], i64::from(sequence.ids()[t]));
                prop_assert_eq!(positions[place], t as i64);
                prop_assert!(!pads[place]);
                let (row, q) = (place / time, place % time);
                let sees: Vec<usize> = (0..time)
                    .filter(|k| !hidden[(row * time + q) * time + k])
                    .map(|k| row * time + k)
                    .collect();
                let mut before = places[..=t].to_vec();
                before.sort_unstable();
                prop_assert_eq!(sees, before);
                seen.insert(place);
            }
            if let Some(&first) = places.first().filter(|_| !sequence.prompt().is_empty()) {
                used.entry(sequence.prompt()).or_default().insert(first);
            }
        }
        // What no sequence has is padding, which sees itself.
        for place in (0..rows * time).filter(|place| !seen.contains(place)) {
            prop_assert!(pads[place]);
            let (row, q) = (place / time, place % time);
            let sees = |k: usize| !hidden[(row * time + q) * time + k];
            // Also where a model hides padding besides.
            prop_assert!(sees(q) && (sees(0) || seen.iter().all(|place| place / time != row)));
        }
        if length.is_none() {
            prop_assert_eq!(rows, prompts.len());
            prop_assert!(used.values().all(|firsts| firsts.len() == 1));
        }
        // The same again.
        let again = pack(&sequences, packing);
        prop_assert_eq!(ints(&again.ids), ids);
    }
}

/// Learned positions, in Burn's own transformer.
#[derive(Module, Debug)]
struct Learned {
    words: Embedding,
    positions: Embedding,
    encoder: TransformerEncoder,
    head: Linear,
}

/// A transformer that takes positions and a mask.
trait Model: Module {
    fn states(
        &self,
        ids: Tensor<2, Int>,
        positions: Tensor<2, Int>,
        mask: Tensor<4, Bool>,
    ) -> Tensor<3>;
    fn head(&self) -> LmHead;

    /// As everybody calls it: a row per sequence.
    fn padded(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [batch, time] = ids.dims();
        let device = ids.device();
        let positions = Tensor::<1, Int>::arange(0..time as i64, &device);
        let future = Tensor::<2, Bool>::tril_mask([time, time], 0, &device);
        let mask = future.unsqueeze::<4>().repeat_dim(0, batch);
        self.states(ids, positions.unsqueeze().repeat_dim(0, batch), mask)
    }

    fn packed(&self, batch: &PackedBatch) -> Tensor<3> {
        let (ids, positions) = (batch.ids.clone(), batch.positions.clone());
        self.states(ids, positions, batch.attention_mask())
    }
}

impl Model for Learned {
    fn states(
        &self,
        ids: Tensor<2, Int>,
        positions: Tensor<2, Int>,
        mask: Tensor<4, Bool>,
    ) -> Tensor<3> {
        let x = self.words.forward(ids) + self.positions.forward(positions);
        let input = TransformerEncoderInput::new(x).mask_attn(mask.squeeze_dim(1));
        self.encoder.forward(input)
    }

    fn head(&self) -> LmHead {
        LmHead::from(&self.head)
    }
}

impl Model for Llama {
    fn states(
        &self,
        ids: Tensor<2, Int>,
        positions: Tensor<2, Int>,
        mask: Tensor<4, Bool>,
    ) -> Tensor<3> {
        self.hidden_packed(ids, positions, Visible::Mask(mask))
    }

    fn head(&self) -> LmHead {
        LmHead::from(self.head.as_ref().unwrap())
    }
}

/// The same model, computing nothing that a mask would hide.
#[derive(Module, Debug)]
struct BySegments {
    model: Llama,
}

impl Model for BySegments {
    fn states(
        &self,
        ids: Tensor<2, Int>,
        positions: Tensor<2, Int>,
        mask: Tensor<4, Bool>,
    ) -> Tensor<3> {
        self.model.states(ids, positions, mask)
    }

    fn head(&self) -> LmHead {
        self.model.head()
    }

    fn packed(&self, batch: &PackedBatch) -> Tensor<3> {
        let (ids, positions) = (batch.ids.clone(), batch.positions.clone());
        let visible = Visible::Segments(&batch.segments);
        self.model.hidden_packed(ids, positions, visible)
    }
}

fn learned() -> Learned {
    let device = device().autodiff();
    device.seed(11);
    Learned {
        words: EmbeddingConfig::new(VOCAB, 8).init(&device),
        positions: EmbeddingConfig::new(64, 8).init(&device),
        encoder: TransformerEncoderConfig::new(8, 16, 2, 2)
            .with_dropout(0.0)
            .init(&device),
        head: LinearConfig::new(8, VOCAB).init(&device),
    }
}

fn rotary() -> Llama {
    let device = device().autodiff();
    device.seed(12);
    let config = LlamaConfig {
        dim: 8,
        hidden: 16,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        vocab: VOCAB,
        max_time: 64,
        tied: false,
        rope_base: 1e4,
    };
    config.init(&device)
}

/// The gradient of every parameter, one after the other.
fn gradients<M: Module>(model: &M, grads: &Gradients) -> Vec<f64> {
    struct Collect<'a>(&'a Gradients, Vec<f64>);
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val();
            match value.grad(self.0) {
                Some(grad) => self.1.extend(to_vec(grad)),
                // Frequencies and what no token reached.
                None => self.1.extend(vec![0.0; value.shape().num_elements()]),
            }
        }
    }
    let mut collect = Collect(grads, Vec::new());
    model.visit(&mut collect);
    collect.1
}

/// Log-probabilities of each token and every gradient of a loss, three ways.
fn three_ways<M: Model>(
    model: &M,
    sequences: &[Sequence],
    packing: Packing,
    loss: impl Fn(SequenceLogProbs) -> Tensor<1>,
) -> [(Vec<f64>, Vec<f64>); 3] {
    let batch = TokenBatch::new(sequences.to_vec(), padding(), &device()).unwrap();
    let packed = pack(sequences, packing);
    let padded = batch.token_log_probs((model.padded(batch.ids.clone()), model.head()));
    let by_hidden = packed.token_log_probs((model.packed(&packed), model.head()));
    let by_unpacking = {
        let hidden = packed.unpack(model.packed(&packed)).unwrap();
        packed.unpacked.token_log_probs((hidden, model.head()))
    };
    [padded, by_hidden, by_unpacking].map(|log_probs| {
        let log_probs = log_probs.unwrap();
        let values = to_vec(log_probs.log_probs());
        let loss = loss(log_probs.sequence());
        let grads = loss.sum().backward();
        (values, gradients(model, &grads))
    })
}

#[track_caller]
fn assert_close(ours: &[f64], theirs: &[f64]) {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
    for (i, (a, b)) in ours.iter().zip_equal(theirs).enumerate() {
        assert!((a - b).abs() < 2e-5 * largest, "{i}: {a} and {b}");
    }
}

#[track_caller]
fn assert_same(ways: &[(Vec<f64>, Vec<f64>); 3]) {
    let [(values, grads), others @ ..] = ways;
    for (other_values, other_grads) in others {
        assert_close(other_values, values);
        assert_close(other_grads, grads);
    }
}

/// Each sequence's log-probability in the loss, none of them alike.
fn weighted(log_probs: SequenceLogProbs) -> Tensor<1> {
    let sum = log_probs.sum();
    let [rows] = sum.dims();
    let weights: Vec<f32> = (0..rows).map(|i| 1.0 - 0.3 * i as f32).collect();
    sum * Tensor::<1>::from_floats(weights.as_slice(), &device())
}

proptest! {
    #![proptest_config(cases(24))]

    /// Pairs, lists of 2 to 8, prompts of one token, empty completions, rows that are full.
    #[test]
    fn numbers_are_those_of_padded_rows(sequences in groups(1..6, 8), length in prop::option::of(11_usize..40)) {
        let packing = length.map_or(Packing::new(padding()), rows_of);
        assert_same(&three_ways(&rotary(), &sequences, packing, weighted));
        let by_segments = BySegments { model: rotary() };
        assert_same(&three_ways(&by_segments, &sequences, packing, weighted));
        assert_same(&three_ways(&learned(), &sequences, packing, weighted));
    }
}

#[test]
fn losses_are_those_of_padded_rows() {
    let model = rotary();
    let reference = Frozen::new(&learned());
    let pair = |p: u32, w: &[u32], l: &[u32]| Example::pair(vec![p, 3, p], w.to_vec(), l.to_vec());
    let items = vec![
        pair(1, &[4, 5, 6], &[7]),
        pair(2, &[8, 9], &[10, 11, 12, 13]),
        pair(1, &[5, 5], &[6, 6]),
    ];
    let batch: PairTokens = Collator::new(padding()).batch(items, &device());
    let packed = pack(&batch.tokens.sequences, rows_of(19));
    assert_eq!(packed.ids.dims(), [2, 11], "11 and 9: prompts stand once");

    let theirs = packed
        .reference(&reference, |m, batch| (m.packed(batch), m.head()))
        .unwrap();
    let expected = batch
        .tokens
        .reference(&reference, |m, ids| (m.padded(ids), m.head()))
        .unwrap();
    assert_close(&to_vec(theirs.sum()), &to_vec(expected.sum()));
    assert!(!theirs.sum().is_tracked());
    let by_logits = packed
        .reference(&reference, |m, batch| m.head.forward(m.packed(batch)))
        .unwrap();
    assert_close(&to_vec(by_logits.sum()), &to_vec(expected.sum()));

    let dpo = DpoLossConfig::new().init();
    let reference = batch.pair(expected).unwrap();
    let ways = three_ways(&model, &batch.tokens.sequences, rows_of(19), |y| {
        let pair = batch.pair(y).unwrap();
        dpo.forward(pair.relative_to(reference.clone()).unwrap())
            .losses()
    });
    assert_same(&ways);

    // A list of three and one of two, whose third row is its prompt alone.
    let list = |p: u32, n: u32| {
        let answers = (0..n).map(|i| vec![p + i, 2]).collect();
        Example::ranked(vec![p; 4], answers, (0..n).map(f64::from).collect()).unwrap()
    };
    let batch: RankedTokens =
        Collator::new(padding()).batch(vec![list(3, 3), list(9, 2)], &device());
    let loss = RrhfLossConfig::new().init();
    let packing = Packing::new(padding());
    assert_eq!(packing.dims(&batch.tokens.sequences).unwrap(), [2, 10]);
    let ways = three_ways(&model, &batch.tokens.sequences, packing, |y| {
        loss.forward(batch.ranked(y).unwrap()).losses()
    });
    assert_same(&ways);
}

#[test]
fn the_discrepancy_of_packed_rows() {
    let sequences = [
        Sequence::new(&[1, 2], &[3, 4]),
        Sequence::new(&[1, 2], &[5]),
    ];
    let packed = pack(&sequences, Packing::new(padding()));
    let (ours, theirs) = (learned(), rotary());
    let batch = &packed.unpacked;
    let ids = || batch.ids.clone();
    for kind in [Discrepancy::ForwardKl, Discrepancy::JensenShannon(0.3)] {
        let policy = || (ours.packed(&packed), ours.head());
        let reference = || (theirs.packed(&packed), theirs.head());
        let found = packed.discrepancy(kind, policy(), reference()).unwrap();
        let expected = batch
            .discrepancy(
                kind,
                (ours.padded(ids()), ours.head()),
                (theirs.padded(ids()), theirs.head()),
            )
            .unwrap();
        let expected = to_vec(expected.values());
        assert_eq!(expected.iter().filter(|x| **x != 0.0).count(), 3);
        assert_close(&to_vec(found.values()), &expected);
        let [policy, reference] =
            [policy(), reference()].map(|(hidden, head)| head.logits(hidden).unwrap());
        let found = packed.discrepancy(kind, policy, reference).unwrap();
        assert_close(&to_vec(found.values()), &expected);
    }
}

#[test]
fn what_has_no_packed_way_is_unpacked() {
    let sequences = [
        Sequence::new(&[1, 2], &[3, 4]),
        Sequence::new(&[1, 2], &[5]),
    ];
    let packed = pack(&sequences, Packing::new(padding()));
    let model = learned();
    let log_probs = |hidden| {
        let found = packed.unpacked.token_log_probs((hidden, model.head()));
        to_vec(found.unwrap().log_probs())
    };
    let unpacked = packed.unpack(model.packed(&packed)).unwrap();
    let padded = model.padded(packed.unpacked.ids.clone());
    assert_close(&log_probs(unpacked), &log_probs(padded));

    let wrong = Tensor::<3>::zeros([1, 4, 8], &device());
    let found = |error: InvalidInput| error.to_string();
    assert_eq!(
        found(packed.unpack(wrong.clone()).unwrap_err()),
        "`values`: expected shape [1, 5, 8], found shape [1, 4, 8]"
    );
    let head = model.head();
    let error = packed.log_probs(&wrong, |wrong, _| (wrong.clone(), head));
    assert_eq!(error.unwrap_err().name(), "hidden");
    let error = packed.log_probs(&wrong, |wrong, _| wrong.clone());
    assert_eq!(error.unwrap_err().name(), "logits");
}

/// A model that ignores the mask, and one that counts positions through.
#[test]
#[expect(clippy::too_many_lines, reason = "one setting, every finding")]
fn the_first_batch_check_sees_a_model_that_ignores_the_packing() {
    let sequences = [
        Sequence::new(&[1, 2], &[3, 4, 5]),
        Sequence::new(&[6], &[7, 8]),
        Sequence::new(&[1, 2], &[9]),
        Sequence::new(&[6], &[10, 11]),
    ];
    let packed = pack(&sequences, rows_of(16));
    let model = rotary();
    let log_probs =
        |hidden, batch: &PackedBatch| batch.log_probs(&model, |model, _| (hidden, model.head()));
    let padded = |rows: &TokenTensors| {
        rows.log_probs(&model, |model, ids| (model.padded(ids), model.head()))
    };
    let check = FirstBatch::new(&packed.unpacked).unwrap();
    let found = check
        .check_packed(&packed, padded, |batch| {
            log_probs(model.packed(batch), batch)
        })
        .unwrap();
    assert!(
        found.is_empty() && found.not_checked().is_empty(),
        "{found}"
    );

    // One causal row.
    let causal = |batch: &PackedBatch| {
        let [rows, time] = batch.ids.dims();
        let future = Tensor::<2, Bool>::tril_mask([time, time], 0, &device());
        let mask = future.unsqueeze::<4>().repeat_dim(0, rows);
        model.states(batch.ids.clone(), batch.positions.clone(), mask)
    };
    let found = check
        .check_packed(&packed, padded, |batch| log_probs(causal(batch), batch))
        .unwrap();
    let all: Vec<_> = found.iter().collect();
    assert!(
        matches!(all[..], [Finding::SeesNeighbours { row: 1..=3, difference }] if *difference > 1e-4),
        "{found}"
    );
    assert!(found.to_string().contains("the model ignores the mask"));

    let counted_through = |batch: &PackedBatch| {
        let [rows, time] = batch.ids.dims();
        let positions = Tensor::<1, Int>::arange(0..time as i64, &device());
        let positions = positions.unsqueeze().repeat_dim(0, rows);
        model.states(batch.ids.clone(), positions, batch.attention_mask())
    };
    let found = check
        .check_packed(&packed, padded, |batch| {
            log_probs(counted_through(batch), batch)
        })
        .unwrap();
    let all: Vec<_> = found.iter().collect();
    assert!(
        matches!(all[..], [Finding::PackedDiffers { row: 1..=3, .. }]),
        "{found}"
    );
    assert!(found.has_errors() && found.to_string().contains("positions that do not restart"));

    // Dropout, and numbers that are none: said as they are.
    let mut passes = 0.0;
    let found = check
        .check_packed(&packed, padded, |batch| {
            passes += 1.0;
            let log_probs = log_probs(model.packed(batch), batch)?;
            Ok::<_, InvalidInput>(with_sum(&log_probs, log_probs.sum() + passes * 0.1))
        })
        .unwrap();
    let all: Vec<_> = found.iter().collect();
    assert!(matches!(all[..], [Finding::Random { .. }]), "{found}");
    let found = check
        .check_packed(&packed, padded, |batch| {
            log_probs(model.packed(batch) * f64::NAN, batch)
        })
        .unwrap();
    let all: Vec<_> = found.iter().collect();
    assert!(
        matches!(&all[..], [Finding::NotFinite { rows, of: 4, .. }] if *rows == [0, 1, 2, 3]),
        "{found}"
    );
    let few = FirstBatch::new(&packed.unpacked).unwrap().with_vocab(5);
    let found = few
        .check_packed(&packed, padded, |_| unreachable!("no embedding has 11"))
        .unwrap();
    let all: Vec<_> = found.iter().collect();
    assert!(
        matches!(all[..], [Finding::OutsideVocabulary { .. }]),
        "{found}"
    );

    // Nothing to see beside it, and other sequences.
    let alone = pack(&sequences[..2], Packing::new(padding()));
    let of_alone = FirstBatch::new(&alone.unpacked).unwrap();
    let found = of_alone
        .check_packed(&alone, padded, |batch| {
            log_probs(model.packed(batch), batch)
        })
        .unwrap();
    assert!(found.is_empty());
    assert!(found.not_checked()[0].starts_with("neighbours: no row has two completions"));
    let mut others = sequences.clone();
    others[3] = Sequence::new(&[6], &[10, 12]);
    for others in [pack(&others, rows_of(16)), alone] {
        let error = check.check_packed(&others, padded, |batch| {
            log_probs(model.packed(batch), batch)
        });
        assert_eq!(
            error.unwrap_err().to_string(),
            "`batch`: expected the tokens of this check, packed, found others"
        );
    }
}

/// What else a walk tells, of every row that is read for several completions, and of nothing.
#[test]
fn statistics_are_those_of_padded_rows() {
    let counted = [
        Sequence::new(&[1, 2], &[3, 4, 5]),
        Sequence::new(&[1, 2], &[]),
        Sequence::new(&[1, 2], &[7]).with_counted(&[true]).unwrap(),
        Sequence::new(&[6], &[7, 8])
            .with_counted(&[false, true])
            .unwrap(),
    ];
    let nothing = [Sequence::new(&[1, 2], &[]), Sequence::new(&[3], &[])];
    let model = rotary();
    for sequences in [&counted[..], &nothing] {
        let packed = pack(sequences, Packing::new(padding()));
        let hidden = model.padded(packed.unpacked.ids.clone());
        let (log_probs, padded) = packed
            .unpacked
            .token_log_probs(WithStatistics((hidden, model.head())))
            .unwrap();
        let hidden = model.packed(&packed);
        let logits = WithStatistics(model.logits(hidden.clone()));
        let by_hidden = packed.token_log_probs(WithStatistics((hidden, model.head())));
        let by_logits = packed.token_log_probs(logits);
        for packed in [by_hidden, by_logits] {
            let (values, packed) = packed.unwrap();
            assert_close(&to_vec(values.log_probs()), &to_vec(log_probs.log_probs()));
            for (ours, theirs) in [
                (packed.entropy(), padded.entropy()),
                (packed.top1(), padded.top1()),
            ] {
                assert_close(&to_vec(ours), &to_vec(theirs));
            }
        }
    }
    let none = pack(&[], Packing::new(padding()));
    let hidden = Tensor::<3>::zeros([0, 2, 8], &device());
    let unpacked = none.unpack(hidden.clone()).unwrap();
    assert_eq!(unpacked.dims(), [0, 2, 8]);
    let by_logits = none.token_log_probs(hidden.clone());
    assert_eq!(by_logits.unwrap().log_probs().dims(), [0, 1]);
    let by_hidden = none.token_log_probs(WithStatistics((hidden, model.head())));
    let (_, statistics) = by_hidden.unwrap();
    assert_eq!(statistics.entropy().dims(), [0, 1]);
}

/// A batch that was packed where the policy trains.
/// Places are numbers of 31 bits. Padded, one long sequence makes all others as long.
#[test]
fn a_batch_of_too_many_places_is_an_error() {
    let mut sequences = vec![Sequence::new(&[0], &[1]); 60_000];
    sequences.push(Sequence::new(&[0], &vec![1; 40_000]));
    let error = PackedBatch::new(sequences, rows_of(50_000), &device()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`sequences`: expected at most 2³¹ − 1 places for tokens, found 60001 rows of 40001"
    );
}

#[test]
fn a_reference_gets_no_autodiff() {
    let sequences = vec![Sequence::new(&[1], &[2]), Sequence::new(&[1], &[3])];
    let device = device().autodiff();
    let packed = PackedBatch::new(sequences, Packing::new(padding()), &device).unwrap();
    let reference = Frozen::new(&rotary());
    let plain = |batch: &PackedBatch| {
        assert!(!batch.ids.device().is_autodiff() && !batch.positions.device().is_autodiff());
        assert!(!batch.attention_mask().device().is_autodiff());
    };
    let by_hidden = packed.reference(&reference, |model, batch| {
        plain(batch);
        (model.packed(batch), model.head())
    });
    let by_logits = packed.reference(&reference, |model, batch| {
        plain(batch);
        model.logits(model.packed(batch))
    });
    for log_probs in [by_hidden, by_logits] {
        let log_probs = log_probs.unwrap().sum();
        assert!(!log_probs.device().is_autodiff() && !log_probs.is_tracked());
    }
}

fn example(prompt: usize, completions: [usize; 2]) -> Example<Vec<u32>, Preference> {
    let [chosen, rejected] = completions.map(|n| vec![5; n]);
    Example::pair(
        vec![u32::try_from(prompt).unwrap(); prompt],
        chosen,
        rejected,
    )
}

/// Batches of rows that come one after the other, each with its tokens once it is collated.
#[track_caller]
fn check_budget<L, O>(
    rows: &[Example<Vec<u32>, L>],
    mut budget: TokenBudget<L>,
    tokens: usize,
    cost: impl Fn(O) -> usize,
) where
    L: Clone + PartialEq + std::fmt::Debug + Send + Sync + 'static,
    TokenBudget<L>: BatchStrategy<Example<Vec<u32>, L>>,
    Collator: Batcher<Example<Vec<u32>, L>, O>,
{
    let cost = |rows: &[Example<Vec<u32>, L>]| {
        cost(Collator::new(padding()).batch(rows.to_vec(), &device()))
    };
    let mut batches = Vec::new();
    let mut other = budget.clone_dyn();
    for row in rows {
        budget.add(row.clone());
        batches.extend(budget.batch(false));
    }
    while let Some(batch) = budget.batch(true) {
        batches.push(batch);
    }
    assert!(other.batch(true).is_none(), "a clone begins anew");
    assert_eq!(batches.concat(), rows);
    for (i, batch) in batches.iter().enumerate() {
        assert!(batch.len() == 1 || cost(batch) <= tokens);
        if let Some(next) = batches.get(i + 1) {
            let with_next = [&batch[..], &next[..1]].concat();
            assert!(cost(&with_next) > tokens);
        }
    }
}

proptest! {
    #![proptest_config(cases(60))]

    /// No batch is over its budget that could be smaller, none could take the next row, none is
    /// lost and none comes in another order: in the tensors that a collator makes.
    #[test]
    fn budgets_are_kept(
        lengths in prop::collection::vec((1_usize..5, prop::collection::vec(1_usize..9, 1..5)), 0..20),
        tokens in 2_usize..80,
        packed in any::<bool>(),
    ) {
        let packing = rows_of(14);
        let tensor = |rows: &TokenBatch| {
            let [rows, time] = if packed {
                packing.dims(&rows.sequences).unwrap()
            } else {
                rows.ids.dims()
            };
            rows * time
        };
        let ids = |prompt: usize| vec![u32::try_from(prompt).unwrap(); prompt];
        let pair = |(p, lengths): &(usize, Vec<usize>)| {
            example(*p, [lengths[0], *lengths.last().unwrap()])
        };
        let pairs: Vec<_> = lengths.iter().map(pair).collect();
        let unpaired = |(p, lengths): &(usize, Vec<usize>)| {
            Example::unpaired(ids(*p), vec![3; lengths[0]], true)
        };
        let unpaired: Vec<_> = lengths.iter().map(unpaired).collect();
        let list = |(p, lengths): &(usize, Vec<usize>)| {
            let completions = lengths.iter().map(|&n| vec![4; n]).collect();
            Example::ranked(ids(*p), completions, vec![0.0; lengths.len()]).unwrap()
        };
        let lists: Vec<_> = lengths.iter().map(list).collect();
        macro_rules! check {
            ($rows:expr, $cost:expr) => {{
                let budget = if packed {
                    TokenBudget::packed(tokens, packing)
                } else {
                    TokenBudget::padded(tokens, padding())
                };
                check_budget($rows, budget, tokens, $cost);
            }};
        }
        check!(&pairs, |batch: PairTokens| tensor(&batch.tokens));
        check!(&unpaired, |batch: UnpairedTokens| tensor(&batch.tokens));
        check!(&lists, |batch: RankedTokens| tensor(&batch.tokens));
        if lengths.iter().any(|(p, _)| *p != lengths[0].0) {
            let drop = Truncation::Drop { max_length: 99 };
            let unpaired = Mismatched::new(InMemDataset::new(unpaired), drop);
            let unpaired: Vec<_> = unpaired.iter().map(Result::unwrap).collect();
            check!(&unpaired, |batch: UnpairedTokens<WithMismatched>| {
                tensor(&batch.tokens) + tensor(batch.mismatched())
            });
        }
    }
}

/// Row 5 cannot be read, and many at once not either if it is among them.
#[derive(Debug)]
struct Broken;

impl Dataset<u32> for Broken {
    fn get(&self, index: usize) -> Result<u32, DatasetError> {
        if index == 5 {
            let error = std::io::Error::other("row 5");
            return Err(DatasetError::new(error));
        }
        Ok(u32::try_from(index).unwrap())
    }

    fn len(&self) -> usize {
        10
    }
}

struct Rows;

impl Batcher<u32, Vec<u32>> for Rows {
    fn batch(&self, rows: Vec<u32>, _: &Device) -> Vec<u32> {
        rows
    }
}

#[test]
fn a_row_that_cannot_be_read_takes_no_other_with_it() {
    let loader = EpochLoader::new(Arc::new(Broken), Rows, 4, Cursor::new(10, 1), &device());
    let loader = loader.unwrap();
    let mut rows = Vec::new();
    let mut errors = 0;
    for batch in loader.iter() {
        match batch {
            Ok(batch) => rows.extend(batch),
            Err(_) => errors += 1,
        }
    }
    rows.sort_unstable();
    assert_eq!((rows, errors), (vec![0, 1, 2, 3, 4, 6, 7, 8, 9], 1));
}

#[test]
fn a_loader_by_tokens_goes_through_the_epoch() {
    let rows: Vec<_> = (0..30)
        .map(|i| example(1 + i % 7, [1 + i % 5, 2]))
        .collect();
    let dataset = Arc::new(InMemDataset::new(rows));
    let cursor = Cursor::new(dataset.len(), 3);
    let budget = TokenBudget::packed(40, Packing::new(padding()));
    let collator = Collator::new(padding());
    let loader: EpochLoader<_, _, PairTokens> = EpochLoader::with_strategy(
        Arc::clone(&dataset),
        collator,
        budget,
        cursor.clone(),
        &device(),
    )
    .unwrap();
    let mut batches = loader.iter();
    let mut seen = Vec::new();
    while let Some(batch) = batches.next() {
        let batch = batch.unwrap();
        let [rows, time] = Packing::new(padding())
            .dims(&batch.tokens.sequences)
            .unwrap();
        assert!(rows * time <= 40);
        seen.extend(batch.examples);
        assert_eq!(batches.progress().items_processed, seen.len());
    }
    let order: Vec<_> = cursor
        .remaining(&dataset)
        .unwrap()
        .iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(seen, order);
}

/// What a cache is asked for, and where the tensors are.
#[test]
fn devices_and_types_are_those_of_the_rows() {
    let sequences = [Sequence::new(&[1], &[2]), Sequence::new(&[1], &[3])];
    let packed = pack(&sequences, Packing::new(padding()));
    assert_eq!(packed.unpacked.sequences, sequences);
    assert_eq!(packed.len(), 2);
    let here: Device = device();
    assert_eq!(packed.ids.device(), here);
    assert_eq!(packed.attention_mask().device(), here);
}
