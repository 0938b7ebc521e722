//! The check of the first batch: every finding is provoked alone, and a healthy batch has none.

use burn::module::{Lora, Module};
use burn::nn::{Dropout, DropoutConfig, Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use burn_preference::tokens::{Padding, Sequence, TokenBatch, TokenTensors};
use burn_preference::training::first_batch::{Finding, Findings, FirstBatch, Severity, Side};
use burn_preference::{
    DpoLossConfig, InvalidInput, IpoLossConfig, KtoLossConfig, LmHead, Objective, Pair,
    RelativeLogProbs, SequenceLogProbs, TokenLogProbs, Unpaired, WithBaseline, WithMargin,
};
use proptest::prelude::*;

use crate::support::{ZipEqual, bools, cases, device, f64s, floats, keeps_nan, to_vec, with_sum};

const VOCAB: usize = 11;
const WIDTH: usize = 6;

/// A model of one uniform attention, and what may be wrong with it.
#[derive(Debug, Clone)]
struct Model {
    /// `[vocab, width]`
    embedding: Tensor<2>,
    /// `[width, vocab]`
    head: Tensor<2>,
    dropout: Dropout,
    faults: Faults,
}

#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::struct_excessive_bools, reason = "a checklist")]
struct Faults {
    attends_to_padding: bool,
    attends_to_the_future: bool,
    counts_positions_of_padding: bool,
    mixes_rows: bool,
    /// The column of a token is the one before it.
    shifted: bool,
}

/// The same numbers on every device.
fn weights(shape: [usize; 2], seed: usize, device: &Device) -> Tensor<2> {
    // Without structure: a constant that is added to all logits would change nothing.
    let hash = |i: usize| (i as u64 + 1 + 1000 * seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let value = |i: usize| ((hash(i) >> 40) as f32 / (1 << 23) as f32 - 1.0) * 0.6;
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(value).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

impl Model {
    fn new(seed: usize) -> Self {
        let device = device().autodiff();
        Self {
            embedding: weights([VOCAB, WIDTH], seed, &device).require_grad(),
            head: weights([WIDTH, VOCAB], seed + 1, &device).require_grad(),
            dropout: DropoutConfig::new(0.0).init(),
            faults: Faults::default(),
        }
    }

    fn with(faults: Faults) -> Self {
        Self {
            faults,
            ..Self::new(1)
        }
    }

    fn logits(&self, rows: &TokenTensors) -> Tensor<3> {
        let [n, time] = rows.ids.dims();
        let padding: Vec<bool> = rows.pad_mask.to_data().iter::<bool>().collect();
        let attended = |row: usize, t: usize, s: usize| {
            (s <= t || self.faults.attends_to_the_future)
                && (!padding[row * time + s] || self.faults.attends_to_padding)
        };
        let mut scores = Vec::new();
        let mut positions = Vec::new();
        for row in 0..n {
            let mut position = 0.0;
            for t in 0..time {
                let seen: Vec<bool> = (0..time).map(|s| attended(row, t, s)).collect();
                let share = 1.0 / seen.iter().filter(|&&seen| seen).count().max(1) as f32;
                scores.extend(seen.iter().map(|&seen| if seen { share } else { 0.0 }));
                let counts = !padding[row * time + t] || self.faults.counts_positions_of_padding;
                positions.push(position);
                position += if counts { 0.25 } else { 0.0 };
            }
        }
        let device = self.embedding.device();
        let scores = Tensor::<3>::from_data(TensorData::new(scores, [n, time, time]), &device);
        let positions = TensorData::new(positions, [n, time, 1]);
        let positions = Tensor::<3>::from_data(positions, &device);
        let ids = Tensor::<2, Int>::from_data(rows.ids.to_data(), &device);
        let embedded = self.embedding.clone().select(0, ids.reshape([n * time]));
        let embedded = embedded.reshape([n, time, WIDTH]) + positions;
        let mut hidden = embedded.clone() + scores.matmul(embedded);
        if self.faults.mixes_rows {
            hidden = hidden.clone() + hidden.mean_dim(0);
        }
        let hidden = self.dropout.forward(hidden).reshape([n * time, WIDTH]);
        let logits = hidden.matmul(self.head.clone());
        logits.reshape([n, time, VOCAB])
    }

    fn log_probs(&self, rows: &TokenTensors) -> Result<SequenceLogProbs, InvalidInput> {
        let device = self.embedding.device();
        let on = |mask: &Tensor<2, Bool>| Tensor::<2, Bool>::from_data(mask.to_data(), &device);
        let ids = Tensor::<2, Int>::from_data(rows.ids.to_data(), &device);
        let mut mask = on(&rows.completion_mask.tensor());
        if self.faults.shifted {
            let [n, time] = mask.dims();
            let none = Tensor::<2, Bool>::from_data(
                TensorData::new(vec![false; n], [n, 1]),
                &mask.device(),
            );
            mask = Tensor::cat(vec![none, mask.narrow(1, 0, time - 1)], 1);
        }
        let log_probs = TokenLogProbs::from_output(self.logits(rows), ids, mask)?;
        Ok(log_probs.sequence())
    }
}

/// Rows of (prompt, completion) as tensors, padded on one side with an id that means something.
#[derive(Debug, Clone)]
struct Batch {
    rows: Vec<(Vec<i32>, Vec<i32>)>,
    left: bool,
}

impl Batch {
    /// Pairs of unequal lengths.
    fn pairs() -> Self {
        let rows = [
            (&[1, 2][..], &[3, 4, 5][..]),
            (&[6], &[7, 8, 9, 10]),
            (&[1, 2], &[4, 3]),
            (&[6], &[8, 7]),
        ];
        let rows = rows.map(|(prompt, completion)| (prompt.to_vec(), completion.to_vec()));
        Self {
            rows: rows.to_vec(),
            left: false,
        }
    }

    fn time(&self) -> usize {
        let lengths = self.rows.iter().map(|(p, c)| p.len() + c.len());
        lengths.max().unwrap()
    }

    /// Ids, completion mask and padding mask.
    fn values(&self) -> (Vec<i32>, Vec<bool>, Vec<bool>) {
        let (mut ids, mut counted, mut padded) = (Vec::new(), Vec::new(), Vec::new());
        for (prompt, completion) in &self.rows {
            let padding = self.time() - prompt.len() - completion.len();
            let pad = |ids: &mut Vec<i32>, counted: &mut Vec<bool>, padded: &mut Vec<bool>| {
                ids.extend(vec![0; padding]);
                counted.extend(vec![false; padding]);
                padded.extend(vec![true; padding]);
            };
            if self.left {
                pad(&mut ids, &mut counted, &mut padded);
            }
            ids.extend(prompt.iter().chain(completion));
            counted.extend(vec![false; prompt.len()]);
            counted.extend(vec![true; completion.len()]);
            padded.extend(vec![false; prompt.len() + completion.len()]);
            if !self.left {
                pad(&mut ids, &mut counted, &mut padded);
            }
        }
        (ids, counted, padded)
    }

    fn first(&self) -> FirstBatch {
        let (ids, counted, padded) = self.values();
        first(self.rows.len(), ids, counted, padded)
    }
}

fn first(rows: usize, ids: Vec<i32>, counted: Vec<bool>, padded: Vec<bool>) -> FirstBatch {
    let shape = [rows, ids.len() / rows];
    let mask = |mask: Vec<bool>| Tensor::from_data(TensorData::new(mask, shape), &device());
    let ids = Tensor::from_data(TensorData::new(ids, shape), &device());
    let rows = TokenTensors::new(ids, mask(counted), mask(padded)).unwrap();
    let first = FirstBatch::new(rows).unwrap().with_vocab(VOCAB);
    // A module without parameters: the models here have tensors.
    first.with_parameters_of(&DropoutConfig::new(0.0).init())
}

fn dpo(y: RelativeLogProbs) -> Result<Tensor<1>, InvalidInput> {
    let dpo = DpoLossConfig::new().with_beta(0.1).init();
    Ok(dpo.forward(Pair::from_concatenated(&y)?).losses())
}

fn against(batch: &FirstBatch, policy: &Model, reference: &Model) -> Findings {
    let ours = |rows: &TokenTensors| policy.log_probs(rows);
    let theirs = |rows: &TokenTensors| reference.log_probs(rows);
    batch.check_against(ours, theirs, dpo).unwrap()
}

/// Of a healthy model on pairs.
fn healthy(batch: &Batch) -> Findings {
    let batch = batch.first().pairs().unwrap();
    against(&batch, &Model::new(1), &Model::new(1))
}

/// The one finding that there is.
fn only(findings: &Findings) -> Finding {
    let all: Vec<_> = findings.iter().cloned().collect();
    assert_eq!(all.len(), 1, "{findings}");
    all.into_iter().next().unwrap()
}

/// The findings of a policy alone.
fn alone(batch: &Batch, policy: &Model) -> Findings {
    let batch = batch.first().pairs().unwrap();
    batch.check_policy(|rows| policy.log_probs(rows)).unwrap()
}

#[test]
fn a_healthy_batch() {
    for left in [false, true] {
        let findings = healthy(&Batch {
            left,
            ..Batch::pairs()
        });
        assert!(findings.is_empty() && !findings.has_errors(), "{findings}");
        assert!(findings.not_checked().is_empty(), "{findings}");
        assert_eq!(findings.to_string(), "first batch: nothing wrong found\n");
    }
}

#[test]
fn what_could_not_be_checked_is_said() {
    let mut batch = Batch::pairs();
    batch.rows = vec![(vec![1, 2], vec![3])];
    let (ids, counted, padded) = batch.values();
    let shape = [1, 3];
    let mask = |mask: Vec<bool>| Tensor::from_data(TensorData::new(mask, shape), &device());
    let ids = Tensor::from_data(TensorData::new(ids, shape), &device());
    let rows = TokenTensors::new(ids, mask(counted), mask(padded)).unwrap();
    let batch = FirstBatch::new(rows).unwrap();
    let policy = Model::new(1);
    let findings = batch.check_policy(|rows| policy.log_probs(rows)).unwrap();
    assert!(findings.is_empty(), "{findings}");
    let said = findings.not_checked();
    let starts = ["ids", "labels", "tied weights", "padding", "causality"];
    assert_eq!(said.len(), starts.len(), "{findings}");
    for (said, start) in said.iter().zip_equal(starts) {
        assert!(said.starts_with(start), "{said}");
    }
}

#[test]
fn of_a_batch_of_this_crate() {
    let rows = vec![Sequence::new(&[1], &[2, 3]), Sequence::new(&[1], &[4])];
    let batch = TokenBatch::new(rows, Padding::new(0), &device()).unwrap();
    let batch = FirstBatch::new(&batch).unwrap().pairs().unwrap();
    let policy = Model::new(1);
    let findings = batch.check_policy(|rows| policy.log_probs(rows)).unwrap();
    assert!(findings.is_empty(), "{findings}");
}

#[test]
fn ids_outside_the_vocabulary() {
    for (bad, at) in [(11, 2), (-100, 6)] {
        let (mut ids, counted, padded) = Batch::pairs().values();
        ids[at] = bad;
        let batch = first(4, ids, counted, padded);
        // No model is asked: its embedding would panic.
        let findings = batch
            .check_policy::<InvalidInput>(|_| panic!("not called"))
            .unwrap();
        let expected = Finding::OutsideVocabulary {
            tokens: 1,
            id: bad.into(),
            row: at / 5,
            position: at % 5,
            vocab: VOCAB,
        };
        assert_eq!(only(&findings), expected);
        assert!(findings.has_errors());
    }
}

#[test]
fn rows_without_a_counted_token() {
    let mut batch = Batch::pairs();
    let (ids, mut counted, padded) = batch.values();
    counted[5..10].fill(false);
    let checked = first(4, ids, counted, padded).pairs().unwrap();
    let found = only(&against(&checked, &Model::new(1), &Model::new(1)));
    let expected = Finding::NothingCounts {
        rows: vec![1],
        of: 4,
    };
    assert_eq!(found, expected);
    // A completion of which only the first token of all counts has no prediction either.
    batch.rows[1] = (vec![], vec![9]);
    let found = alone(&batch, &Model::new(1));
    assert!(found.iter().any(|found| *found == expected), "{found}");
}

#[test]
fn candidates_that_a_list_lacks() {
    let mut batch = Batch::pairs();
    batch.rows[3].1 = vec![];
    let policy = Model::new(1);
    let check = |present: [bool; 4]| {
        let present = bools(&present).reshape([2, 2]);
        let batch = batch.first().lists(&present).unwrap();
        batch.check_policy(|rows| policy.log_probs(rows)).unwrap()
    };
    assert!(check([true, true, true, false]).is_empty());
    let (rows, of) = (vec![3], 4);
    let found = only(&check([true; 4]));
    assert_eq!(found, Finding::NothingCounts { rows, of });
}

/// A row that is fine in the batch and NaN alone must not pass in silence.
#[test]
fn a_nan_of_a_later_pass() {
    if !keeps_nan() {
        return;
    }
    let policy = Model::new(1);
    let batch = Batch::pairs().first().pairs().unwrap();
    let single = |rows: &TokenTensors| {
        let y = policy.log_probs(rows)?;
        let alone = y.sum().dims() == [1];
        let sum = y.sum() * if alone { f64::NAN } else { 1.0 };
        Ok::<_, InvalidInput>(with_sum(&y, sum))
    };
    let findings = batch.check_policy(single).unwrap();
    let Finding::AloneDiffers { alone, .. } = only(&findings) else {
        panic!("{findings}");
    };
    assert!(alone.is_nan());
}

#[test]
fn masks_that_are_all_true() {
    for left in [false, true] {
        let batch = Batch {
            left,
            ..Batch::pairs()
        };
        let (ids, _, padded) = batch.values();
        let counted = padded.iter().map(|padded| !padded).collect();
        let batch = first(4, ids, counted, padded).pairs().unwrap();
        let found = only(&against(&batch, &Model::new(1), &Model::new(1)));
        let rows = vec![0, 1, 2, 3];
        assert_eq!(found, Finding::EverythingCounts { rows, of: 4 });
    }
}

#[test]
fn padding_that_counts() {
    let (ids, mut counted, padded) = Batch::pairs().values();
    for (counted, padded) in counted.iter_mut().zip(&padded).skip(10) {
        *counted |= padded;
    }
    let batch = first(4, ids, counted, padded).pairs().unwrap();
    let found = only(&against(&batch, &Model::new(1), &Model::new(1)));
    let expected = Finding::PaddingCounts {
        tokens: 3,
        rows: vec![2, 3],
        of: 4,
    };
    assert_eq!(found, expected);
}

#[test]
fn sides_that_are_identical() {
    let mut batch = Batch::pairs();
    batch.rows[3] = batch.rows[1].clone();
    let findings = healthy(&batch);
    let pairs = vec![1];
    assert_eq!(only(&findings), Finding::IdenticalSides { pairs, of: 2 });
    assert!(!findings.has_errors(), "a few such pairs are a warning");
    batch.rows[2] = batch.rows[0].clone();
    let findings = healthy(&batch);
    assert_eq!(only(&findings).severity(), Severity::Error);
}

/// One answer beside two pictures is a pair, and beside one picture it is none.
#[test]
fn sides_that_differ_in_their_pictures() {
    let mut batch = Batch::pairs();
    for pair in 0..2 {
        batch.rows[2 + pair] = batch.rows[pair].clone();
    }
    let sequence = |picture: u8| Sequence::new(&[1], &[2]).with_context([picture; 32]);
    let check = |pictures: [u8; 4]| {
        let first = batch.first().pairs().unwrap();
        let first = first.with_contexts_of(&pictures.map(sequence)).unwrap();
        against(&first, &Model::new(1), &Model::new(1))
    };
    assert!(check([0, 1, 2, 3]).is_empty());
    let pairs = vec![1];
    let found = only(&check([0, 1, 2, 1]));
    assert_eq!(found, Finding::IdenticalSides { pairs, of: 2 });
    let error = batch.first().with_contexts_of(&[sequence(0)]).unwrap_err();
    assert_eq!(error.name(), "sequences");
}

#[test]
fn rows_in_turn_instead_of_halves() {
    let mut batch = Batch::pairs();
    batch.rows.swap(1, 2); // chosen, rejected, chosen, rejected
    let found = only(&healthy(&batch));
    let pairs = vec![0, 1];
    assert_eq!(found, Finding::PromptsDiffer { pairs, of: 2 });
}

/// `pairs` with these lengths of the completions, chosen and rejected.
fn of_lengths(lengths: &[(usize, usize)]) -> Batch {
    let row = |i: usize, first: i32, length: usize| {
        let completion = (0..length).map(|t| if t == 0 { first } else { 3 });
        (vec![1, i32::try_from(i % 9).unwrap()], completion.collect())
    };
    let chosen = lengths.iter().enumerate().map(|(i, l)| row(i, 4, l.0));
    let rejected = lengths.iter().enumerate().map(|(i, l)| row(i, 5, l.1));
    Batch {
        rows: chosen.chain(rejected).collect(),
        left: false,
    }
}

#[test]
fn lengths_that_tell_the_label() {
    let of = |lengths: &[(usize, usize)]| {
        let found = only(&healthy(&of_lengths(lengths)));
        assert_eq!(found.severity(), Severity::Warning);
        let Finding::LengthTellsLabel { share, p_value } = found else {
            panic!("{found}");
        };
        (share, p_value, found.to_string())
    };
    // 8 of 8: p = 2/2⁸; 7 of 7 is not yet one in a hundred.
    let (share, p_value, text) = of(&[(5, 2); 8]);
    assert!(share == 1.0 && (p_value - 1.0 / 128.0).abs() < 1e-12);
    assert!(text.contains("the longer one in 100%"), "{text}");
    assert!(healthy(&of_lengths(&[(5, 2); 7])).is_empty());
    // The other way round, and ties do not take part.
    let mut lengths = vec![(1, 3); 9];
    lengths.extend([(2, 2); 20]);
    let (share, p_value, text) = of(&lengths);
    assert!(share == 0.0 && (p_value - 1.0 / 256.0).abs() < 1e-12);
    assert!(text.contains("the shorter one in 100%"), "{text}");
    // 13 of 15: 2·(1 + 15 + 105)/2¹⁵.
    let mut lengths = vec![(4, 1); 13];
    lengths.extend([(1, 4); 2]);
    let (share, p_value, _) = of(&lengths);
    assert!((share - 13.0 / 15.0).abs() < 1e-12);
    assert!((p_value - 242.0 / 32768.0).abs() < 1e-12);
}

fn unpaired(lengths: &[usize], desirable: &[bool]) -> Findings {
    let rows = lengths.iter().map(|&length| (vec![1, 2], vec![3; length]));
    let batch = Batch {
        rows: rows.collect(),
        left: false,
    };
    let batch = batch.first().unpaired(&bools(desirable)).unwrap();
    let (policy, kto) = (Model::new(1), KtoLossConfig::new().init());
    let log_probs = |rows: &TokenTensors| policy.log_probs(rows);
    let losses = |y: RelativeLogProbs| {
        let batch = Unpaired::new(y, bools(desirable))?;
        let batch = WithBaseline::new(batch, floats(&[0.0], DType::F32))?;
        Ok(kto.forward(batch).losses())
    };
    batch.check_against(log_probs, log_probs, losses).unwrap()
}

#[test]
fn lengths_that_tell_a_desirable_completion() {
    // Six desirable ones, all longer than six undesirable ones: U = 36 of 36, z = (18 − ½)/√39.
    let lengths = [8, 9, 10, 11, 12, 13, 2, 3, 4, 5, 6, 7];
    let desirable = [
        true, true, true, true, true, true, false, false, false, false, false, false,
    ];
    let Finding::LengthTellsLabel { share, p_value } = only(&unpaired(&lengths, &desirable)) else {
        panic!("another finding");
    };
    assert_eq!(share, 1.0);
    assert!((p_value - 0.005_075_0).abs() < 1e-6, "{p_value}");
    // The same lengths in both classes, one class, one length.
    let mixed = [
        true, false, true, false, true, false, false, true, false, true, false, true,
    ];
    assert!(unpaired(&lengths, &mixed).is_empty());
    assert!(unpaired(&lengths, &[true; 12]).is_empty());
    assert!(unpaired(&[3; 12], &desirable).is_empty());
}

#[derive(Module, Debug)]
struct Adapted {
    linear: Linear,
}

#[test]
fn adapters_that_nothing_matches() {
    let model = Adapted {
        linear: LinearConfig::new(2, 3).init(&device().autodiff()),
    };
    let policy = Model::new(1);
    let check = |model: &Adapted| {
        let batch = Batch::pairs().first().pairs().unwrap();
        let batch = batch.with_adapters_of(model);
        batch.check_policy(|rows| policy.log_probs(rows)).unwrap()
    };
    assert_eq!(only(&check(&model)), Finding::NoAdapter);
    let adapted = model.apply_lora(Lora::new(2, 4.0));
    assert!(check(&adapted).is_empty());
}

/// An embedding, and a head that may be the same parameter in a second field.
#[derive(Module, Debug)]
struct Tied {
    body: Embedding,
    head: Option<Embedding>,
}

#[test]
fn a_parameter_in_two_fields() {
    let policy = Model::new(1);
    let check = |model: &Tied| {
        let batch = Batch::pairs().first().pairs().unwrap();
        let batch = batch.with_parameters_of(model);
        batch.check_policy(|rows| policy.log_probs(rows)).unwrap()
    };
    let embedding = || EmbeddingConfig::new(VOCAB, WIDTH).init(&device().autodiff());
    let body = embedding();
    let with_head = |head| Tied {
        body: body.clone(),
        head,
    };
    let frozen = embedding().no_grad();
    let twice_frozen = Tied {
        body: frozen.clone(),
        head: Some(frozen),
    };
    for healthy in [with_head(None), with_head(Some(embedding())), twice_frozen] {
        assert!(check(&healthy).is_empty());
    }
    let two_fields = with_head(Some(body.clone()));
    let found = only(&check(&two_fields));
    assert_eq!(
        found,
        Finding::SharedParameter {
            parameters: 1,
            fields: ["body.weight", "head.weight"].map(str::to_owned),
        }
    );
    assert_eq!(found.severity(), Severity::Error);
    let text = found.to_string();
    assert!(
        text.contains("`head.weight` is `body.weight` again"),
        "{text}"
    );

    // What it warns of: a step parts them.
    let weight = |embedding: &Embedding| embedding.weight.val();
    let both = |model: &Tied| [weight(&model.body), weight(model.head.as_ref().unwrap())];
    let [ours, theirs] = both(&two_fields);
    let grads = (ours + theirs).sum().backward();
    let grads = GradientsParams::from_grads(grads, &two_fields);
    let stepped = SgdConfig::new().init().step(1.0, two_fields, grads);
    let [ours, theirs] = both(&stepped).map(to_vec);
    assert_ne!(ours, theirs);
}

#[test]
fn a_policy_without_gradient() {
    let policy = Model::new(1);
    let batch = Batch::pairs().first().pairs().unwrap();
    let valid = |rows: &TokenTensors| {
        policy
            .log_probs(rows)
            .map(SequenceLogProbs::without_autodiff)
    };
    let findings = batch.check_policy(valid).unwrap();
    assert_eq!(only(&findings), Finding::NoGradient);
    // One by the head's own operation has one.
    let tied = |rows: &TokenTensors| {
        let [n, time] = rows.ids.dims();
        let ids = rows.ids.clone().reshape([n * time]);
        let ids = Tensor::<1, Int>::from_data(ids.into_data(), &policy.embedding.device());
        let hidden = policy.embedding.clone().select(0, ids);
        let hidden = hidden.reshape([n, time, WIDTH]);
        let head = LmHead::new(policy.embedding.clone());
        let mask = rows.completion_mask.clone();
        let y = TokenLogProbs::from_output((hidden, head), rows.ids.clone(), mask)?;
        Ok::<_, InvalidInput>(y.sequence())
    };
    let findings = batch.check_policy(tied).unwrap();
    assert!(findings.is_empty(), "{findings}");
}

#[test]
fn a_nan_in_one_row() {
    if !keeps_nan() {
        return;
    }
    let policy = Model::new(1);
    let batch = Batch::pairs().first().pairs().unwrap();
    let broken = |rows: &TokenTensors| {
        let y = policy.log_probs(rows)?;
        let last = y.sum().dims()[0] - 1;
        let nan = y.sum().narrow(0, last, 1) * f64::NAN;
        let sum = Tensor::cat(vec![y.sum().narrow(0, 0, last), nan], 0);
        Ok::<_, InvalidInput>(with_sum(&y, sum))
    };
    let findings = batch.check_policy(broken).unwrap();
    let (rows, of) = (vec![3], 4);
    let side = Side::Policy;
    assert_eq!(only(&findings), Finding::NotFinite { side, rows, of });
    assert!(findings.not_checked()[0].starts_with("padding and causality"));
}

#[test]
fn losses_in_the_place_of_log_probs() {
    let policy = Model::new(1);
    let batch = Batch::pairs().first().pairs().unwrap();
    let negative = |rows: &TokenTensors| {
        let y = policy.log_probs(rows)?;
        Ok::<_, InvalidInput>(with_sum(&y, -y.sum()))
    };
    let findings = batch.check_policy(negative).unwrap();
    let Finding::AboveZero {
        side: Side::Policy,
        log_prob,
        ..
    } = only(&findings)
    else {
        panic!("{findings}");
    };
    assert!(log_prob > 0.0);
}

#[test]
fn a_reference_over_other_tokens() {
    let policy = Model::new(1);
    let reference = Model::with(Faults {
        shifted: true,
        ..Faults::default()
    });
    let batch = Batch::pairs().first().pairs().unwrap();
    let found = only(&against(&batch, &policy, &reference));
    // Row 0 fills the batch: its last token falls out.
    let expected = Finding::CountsOtherTokens {
        side: Side::Reference,
        row: 0,
        found: 2,
        expected: 3,
    };
    assert_eq!(found, expected);
}

#[test]
fn dropout() {
    let dropout = DropoutConfig::new(0.5).init();
    let policy = Model {
        dropout,
        ..Model::new(1)
    };
    let batch = Batch::pairs().first().pairs().unwrap();
    let findings = against(&batch, &policy, &Model::new(1));
    // Not also that it is not the reference.
    let Finding::Random {
        side, difference, ..
    } = only(&findings)
    else {
        panic!("{findings}");
    };
    assert_eq!(side, Side::Policy);
    assert!(difference > 1e-3);
    // A reference with dropout is found as well.
    let findings = against(&batch, &Model::new(1), &policy);
    let random = |side| {
        matches!(
            side,
            Finding::Random {
                side: Side::Reference,
                ..
            }
        )
    };
    assert!(random(only(&findings)), "{findings}");
}

#[test]
fn a_reference_that_is_not_the_start() {
    let batch = Batch::pairs().first().pairs().unwrap();
    let (policy, reference) = (Model::new(1), Model::new(2));
    let findings = against(&batch, &policy, &reference);
    let Finding::NotAtReference {
        row,
        log_ratio,
        rows: 4,
        of: 4,
        loss,
    } = only(&findings)
    else {
        panic!("{findings}");
    };
    let values = |model: &Model| {
        let mut sums = Vec::new();
        let log_probs = |rows: &TokenTensors| {
            let y = model.log_probs(rows)?;
            if sums.is_empty() {
                sums = to_vec(y.sum());
            }
            Ok::<_, InvalidInput>(y)
        };
        batch.check_policy(log_probs).unwrap();
        sums
    };
    let ratios: Vec<f64> = values(&policy)
        .iter()
        .zip_equal(values(&reference))
        .map(|(a, b)| a - b)
        .collect();
    assert!((ratios[row] - log_ratio).abs() < 1e-5);
    assert!(ratios.iter().all(|r| r.abs() <= log_ratio.abs() + 1e-5));
    let of_pair = |i: usize| (1.0 + f64::exp(-0.1 * (ratios[i] - ratios[i + 2]))).ln();
    assert!((loss.found - f64::midpoint(of_pair(0), of_pair(1))).abs() < 1e-5);
    assert!((loss.expected - std::f64::consts::LN_2).abs() < 1e-6);
    assert!(
        findings
            .to_string()
            .contains("and 0.6931 where policy and reference are equal")
    );
}

/// The value at policy = reference is the objective's own.
#[test]
fn of_any_objective() {
    let batch = Batch::pairs().first().pairs().unwrap();
    let (policy, reference) = (Model::new(1), Model::new(2));
    let ipo = IpoLossConfig::new().with_tau(0.25).init();
    let check = |losses: &dyn Fn(RelativeLogProbs) -> Result<Tensor<1>, InvalidInput>| {
        let findings = batch
            .check_against(
                |rows| policy.log_probs(rows),
                |rows| reference.log_probs(rows),
                losses,
            )
            .unwrap();
        let Finding::NotAtReference { loss, .. } = only(&findings) else {
            panic!("{findings}");
        };
        loss.expected
    };
    let of_ipo =
        check(&|y: RelativeLogProbs| Ok(ipo.forward(Pair::from_concatenated(&y)?).losses()));
    assert!((of_ipo - 4.0).abs() < 1e-5, "1/(4τ²)");
    // With a margin of 1 it is −ln σ(−1) for every pair.
    let of_margins = check(&|y: RelativeLogProbs| {
        let pair = Pair::from_concatenated(&y)?;
        let margins = floats(&[1.0, 1.0], DType::F32);
        let dpo = DpoLossConfig::new().init();
        Ok(dpo.forward(WithMargin::new(pair, margins)?).losses())
    });
    assert!((of_margins - (1.0 + 1_f64.exp()).ln()).abs() < 1e-5);
}

#[test]
fn a_column_with_a_nan() {
    if !keeps_nan() {
        return;
    }
    let model = Model::new(1);
    let batch = Batch::pairs().first().pairs().unwrap();
    let log_probs = |rows: &TokenTensors| model.log_probs(rows);
    let losses = |y: RelativeLogProbs| {
        let nan = TensorData::from([0.0, f32::NAN]);
        Ok::<_, InvalidInput>(dpo(y.clone())? + Tensor::from_data(nan, &y.log_ratio().device()))
    };
    let findings = batch.check_against(log_probs, log_probs, losses).unwrap();
    let examples = vec![1];
    assert_eq!(only(&findings), Finding::LossNotFinite { examples, of: 2 });
}

#[test]
fn worse_than_a_guess() {
    let mut policy = Model::new(1);
    policy.head = policy.head * 100.0;
    // A handful of tokens is no evidence.
    assert!(alone(&Batch::pairs(), &policy).is_empty());
    let findings = alone(&of_lengths(&[(3, 2); 7]), &policy);
    let Finding::WorseThanChance { mean, chance } = only(&findings) else {
        panic!("{findings}");
    };
    assert!((chance + 11_f64.ln()).abs() < 1e-12);
    assert!(mean < chance - 1.0);
    assert!(!findings.has_errors());
}

/// What padding in front shows of a model to which padding at the end does nothing.
fn padded_in_front(faults: Faults) -> Findings {
    let policy = Model::with(faults);
    assert!(alone(&Batch::pairs(), &policy).is_empty());
    let left = Batch {
        left: true,
        ..Batch::pairs()
    };
    alone(&left, &policy)
}

#[test]
fn a_model_that_ignores_the_padding_mask() {
    // At the end of a causal model padding reaches nothing.
    let findings = padded_in_front(Faults {
        attends_to_padding: true,
        ..Faults::default()
    });
    assert!(
        matches!(only(&findings), Finding::PaddingReaches { .. }),
        "{findings}"
    );
}

#[test]
fn positions_that_count_padding() {
    let findings = padded_in_front(Faults {
        counts_positions_of_padding: true,
        ..Faults::default()
    });
    let Finding::AloneDiffers { row, padding, .. } = only(&findings) else {
        panic!("{findings}");
    };
    assert_eq!((row, padding), (3, 2));
}

#[test]
fn rows_that_reach_each_other() {
    let policy = Model::with(Faults {
        mixes_rows: true,
        ..Faults::default()
    });
    let mut batch = Batch::pairs();
    // No padding, and the last tokens are changed in all rows.
    batch.rows = vec![(vec![1, 2], vec![3, 6]), (vec![1, 2], vec![4, 7])];
    let findings = alone(&batch, &policy);
    let Finding::AloneDiffers { row, padding, .. } = only(&findings) else {
        panic!("{findings}");
    };
    assert_eq!((row, padding), (0, 0));
}

#[test]
fn a_model_that_sees_the_future() {
    let policy = Model::with(Faults {
        attends_to_the_future: true,
        ..Faults::default()
    });
    let findings = alone(&Batch::pairs(), &policy);
    let Finding::SeesTheFuture { difference, .. } = only(&findings) else {
        panic!("{findings}");
    };
    assert!(difference > 1e-3);
}

#[test]
fn bad_input_is_an_error() {
    let ids = |shape: [usize; 2]| Tensor::<2, Int>::zeros(shape, &device());
    let mask = |shape: [usize; 2]| {
        let values = vec![false; shape[0] * shape[1]];
        Tensor::<2, Bool>::from_data(TensorData::new(values, shape), &device())
    };
    let first = |a, b, c| TokenTensors::new(ids(a), mask(b), mask(c)).and_then(FirstBatch::new);
    let new = |a, b, c| first(a, b, c).map(|_| ());
    let name = |error: InvalidInput| error.name();
    assert_eq!(
        new([2, 3], [2, 2], [2, 3]).map_err(name),
        Err("completion_mask")
    );
    assert_eq!(new([2, 3], [2, 3], [1, 3]).map_err(name), Err("pad_mask"));
    assert_eq!(new([2, 1], [2, 1], [2, 1]).map_err(name), Err("ids"));
    let mut assigned = TokenTensors::new(ids([3, 2]), mask([3, 2]), mask([3, 2])).unwrap();
    assigned.pad_mask = mask([1, 2]);
    let error = FirstBatch::new(assigned).map(|_| ());
    assert_eq!(error.map_err(name), Err("pad_mask"));
    let odd = first([3, 2], [3, 2], [3, 2]).unwrap();
    assert_eq!(odd.clone().pairs().map(|_| ()).map_err(name), Err("rows"));
    let short = odd.clone().unpaired(&bools(&[true])).map(|_| ());
    assert_eq!(short.map_err(name), Err("desirable"));
    let present = odd.clone().lists(&mask([2, 2])).map(|_| ());
    assert_eq!(present.map_err(name), Err("present"));
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = odd.clone().with_tolerance(bad).unwrap_err();
        assert_eq!(error.name(), "tolerance");
    }
    let empty = TokenBatch::new(vec![], Padding::new(0), &device()).unwrap();
    assert_eq!(
        FirstBatch::new(&empty).map(|_| ()).map_err(name),
        Err("ids")
    );
    // A model that gives another number of rows.
    let one = |_: &TokenTensors| SequenceLogProbs::new(f64s(&[-1.0]), &[1]);
    assert_eq!(odd.check_policy(one).map_err(name), Err("log_probs"));
}

#[test]
fn findings_are_lines_of_a_log() {
    let mut batch = Batch::pairs();
    batch.rows[3] = batch.rows[1].clone();
    let batch = batch.first().pairs().unwrap();
    let findings = against(&batch, &Model::new(1), &Model::new(2));
    let json = serde_json::to_value(&findings).unwrap();
    let kinds: Vec<_> = json["findings"].as_array().unwrap().iter().collect();
    assert_eq!(kinds[0]["finding"], "not_at_reference");
    assert_eq!(kinds[0]["severity"], "error");
    assert_eq!(kinds[1]["finding"], "identical_sides");
    assert_eq!(kinds[1]["severity"], "warning");
    assert_eq!(kinds[1]["pairs"], serde_json::json!([1]));
    assert_eq!(
        kinds[1]["message"],
        "Chosen and rejected are the same tokens in 1 of 2 pairs (1): such a pair teaches \
         nothing. Drop it, or look whether truncation cut away where the sides differ. If the model \
         sees another picture beside each side, say `with_contexts_of`."
    );
    let text = findings.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("error: The loss is ") && lines[1].starts_with("warning: "));
}

#[test]
fn long_lists_of_rows_are_cut() {
    let lengths = [(2, 3), (3, 2)].repeat(6);
    let mut batch = of_lengths(&lengths);
    for i in 0..12 {
        batch.rows[12 + i] = batch.rows[i].clone();
    }
    let text = only(&healthy(&batch)).to_string();
    assert!(
        text.contains("12 of 12 pairs (0, 1, 2, 3, 4, 5, 6, 7 and 4 more)"),
        "{text}"
    );
}

/// Pairs of any shape, fewer than the eight whose lengths could tell something.
fn batches() -> impl Strategy<Value = Batch> {
    let side = || prop::collection::vec(0..11_i32, 0..5);
    let pair = (prop::collection::vec(0..11_i32, 1..4), side(), side());
    (prop::collection::vec(pair, 1..7), any::<bool>()).prop_map(|(pairs, left)| {
        let with = |first: i32, rest: &[i32]| [&[first][..], rest].concat();
        let chosen = pairs.iter().map(|(p, w, _)| (p.clone(), with(4, w)));
        let rejected = pairs.iter().map(|(p, _, l)| (p.clone(), with(5, l)));
        Batch {
            rows: chosen.chain(rejected).collect(),
            left,
        }
    })
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn healthy_batches_have_no_finding(batch in batches()) {
        let findings = healthy(&batch);
        prop_assert!(findings.is_empty(), "{}", findings);
    }

    /// A fault of the model is found in every batch that shows it, and no other is.
    #[test]
    fn faults_are_found_in_any_batch(batch in batches(), fault in 0..4) {
        let faults = Faults {
            attends_to_padding: fault == 0,
            counts_positions_of_padding: fault == 1,
            attends_to_the_future: fault == 2,
            shifted: fault == 3,
            ..Faults::default()
        };
        let findings = alone(&batch, &Model::with(faults));
        let expected = |finding: &Finding| matches!(
            (fault, finding),
            (0, Finding::PaddingReaches { .. })
                | (1, Finding::AloneDiffers { .. })
                | (2, Finding::SeesTheFuture { .. })
                | (3, Finding::CountsOtherTokens { .. })
        );
        let kinds: Vec<bool> = findings.iter().map(expected).collect();
        prop_assert!(kinds.iter().all(|&expected| expected), "{}", findings);
        let padded = batch.left && batch.rows.iter().any(|(p, c)| p.len() + c.len() < batch.time());
        let two = batch.rows.iter().any(|(_, c)| c.len() > 1);
        let full = batch.rows.iter().any(|(p, c)| batch.left || p.len() + c.len() == batch.time());
        let shows = match fault {
            0 | 1 => padded,
            2 => two,
            _ => full,
        };
        prop_assert_eq!(kinds.len() == 1, shows, "{}", findings);
    }

    /// Every mask that counts padding, with the right number.
    #[test]
    fn counted_padding_is_counted(batch in batches(), seed in any::<u64>()) {
        let (ids, mut counted, padded) = batch.values();
        let mut tokens = 0;
        for i in 0..ids.len() {
            if padded[i] && (seed >> (i % 64)) & 1 == 1 {
                counted[i] = true;
                tokens += 1;
            }
        }
        let first = first(batch.rows.len(), ids, counted, padded).pairs().unwrap();
        let findings = against(&first, &Model::new(1), &Model::new(1));
        let found: Vec<usize> = findings.iter().map(|finding| match finding {
            Finding::PaddingCounts { tokens, .. } => *tokens,
            _ => 0,
        }).collect();
        let expected: Vec<usize> = if tokens > 0 { vec![tokens] } else { vec![] };
        prop_assert_eq!(found, expected);
    }

    /// Whatever the masks are, the check ends, and what it names is there.
    #[test]
    fn any_masks(rows in 1..6_usize, time in 2..7_usize, seed in any::<u64>(), labels in 0..3) {
        let bit = |i: usize, salt: u64| {
            (i as u64 + 1).wrapping_mul(seed | 1).wrapping_mul(salt | 1).rotate_left(23) & 3
        };
        let cells = rows * time;
        let ids = (0..cells).map(|i| i32::try_from(bit(i, 3)).unwrap());
        let counted = (0..cells).map(|i| bit(i, 0x9e37_79b9) > 1);
        let padded = (0..cells).map(|i| bit(i, 0x85eb_ca6b) == 0);
        let batch = first(rows, ids.collect(), counted.collect(), padded.collect());
        let desirable: Vec<bool> = (0..rows).map(|i| bit(i, 7) > 1).collect();
        let batch = match labels {
            0 if rows % 2 == 0 => batch.pairs().unwrap(),
            1 => batch.unpaired(&bools(&desirable)).unwrap(),
            _ => batch,
        };
        let policy = Model::new(1);
        let findings = batch.check_policy(|rows| policy.log_probs(rows)).unwrap();
        for finding in findings.iter() {
            match finding {
                Finding::NothingCounts { rows: which, of }
                | Finding::EverythingCounts { rows: which, of }
                | Finding::PaddingCounts { rows: which, of, .. } => {
                    prop_assert!(*of == rows && which.iter().all(|&row| row < rows));
                }
                Finding::IdenticalSides { pairs, of } | Finding::PromptsDiffer { pairs, of } => {
                    prop_assert!(*of == rows / 2 && pairs.iter().all(|pair| pair < of));
                }
                other => prop_assert!(false, "{}", other),
            }
        }
    }
}
