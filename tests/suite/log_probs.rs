//! Log-probs from logits: values, gradients, masks, padding, half precision, bad ids.

use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use burn_preference::log_probs::CompletionMask;
use burn_preference::{LmHead, SequenceLogProbs, TokenLogProbs};
use proptest::prelude::*;

use crate::support::{
    ZipEqual, assert_close, cases, device, elsewhere, error, f64s, ints, sequence, to_vec,
    tolerance,
};

/// A batch of logits `[batch][time][vocab]`, tokens and masks as nested vectors.
#[derive(Debug, Clone)]
struct Batch {
    logits: Vec<Vec<Vec<f64>>>,
    tokens: Vec<Vec<usize>>,
    mask: Vec<Vec<bool>>,
}

fn flat3(x: &[Vec<Vec<f64>>]) -> (Vec<f64>, [usize; 3]) {
    let shape = [x.len(), x[0].len(), x[0][0].len()];
    (x.concat().concat(), shape)
}

impl Batch {
    fn logits(&self, dtype: DType) -> Tensor<3> {
        let (values, shape) = flat3(&self.logits);
        Tensor::from_data(TensorData::new(values, shape), (&device(), dtype))
    }

    fn tokens(&self) -> Tensor<2, Int> {
        let shape = [self.tokens.len(), self.tokens[0].len()];
        ints(&self.tokens.concat()).reshape(shape)
    }

    fn mask(&self) -> Tensor<2, Bool> {
        let shape = [self.mask.len(), self.mask[0].len()];
        Tensor::from_data(TensorData::new(self.mask.concat(), shape), &device())
    }

    fn log_probs(&self, logits: Tensor<3>) -> TokenLogProbs {
        TokenLogProbs::from_output(logits, self.tokens(), self.mask()).unwrap()
    }

    fn sums(&self) -> Vec<f64> {
        to_vec(self.log_probs(self.logits(DType::F64)).sequence().sum())
    }

    /// The same in plain f64: sum and length of each row.
    fn scalar(&self) -> Vec<(f64, f64)> {
        let rows = self.logits.iter().zip(&self.tokens).zip(&self.mask);
        rows.map(|((logits, tokens), mask)| {
            let mut total = (0.0, 0.0);
            for t in 1..tokens.len() {
                if mask[t] {
                    let row = &logits[t - 1];
                    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let z: f64 = row.iter().map(|x| (x - max).exp()).sum();
                    total.0 += row[tokens[t]] - max - z.ln();
                    total.1 += 1.0;
                }
            }
            total
        })
        .collect()
    }

    /// `before` junk positions on the left and `after` on the right, NaN logits included.
    fn padded(&self, before: usize, after: usize) -> Self {
        let vocab = self.logits[0][0].len();
        let around = |row: &Vec<Vec<f64>>, junk: f64| {
            let junk = vec![junk; vocab];
            [vec![junk.clone(); before], row.clone(), vec![junk; after]].concat()
        };
        Self {
            logits: self.logits.iter().map(|r| around(r, f64::NAN)).collect(),
            tokens: self
                .tokens
                .iter()
                .map(|r| [vec![0; before], r.clone(), vec![vocab - 1; after]].concat())
                .collect(),
            mask: self
                .mask
                .iter()
                .map(|r| {
                    // The first token's prediction would now come from a padding row.
                    let mut r = r.clone();
                    r[0] &= before == 0;
                    [vec![false; before], r, vec![false; after]].concat()
                })
                .collect(),
        }
    }
}

prop_compose! {
    fn any_batch()(batch in 1_usize..4, time in 2_usize..8, vocab in 1_usize..32)
        (
            logits in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(-30.0..30.0_f64, vocab), time), batch),
            tokens in prop::collection::vec(prop::collection::vec(0..vocab, time), batch),
            mask in prop::collection::vec(prop::collection::vec(any::<bool>(), time), batch),
        ) -> Batch
    {
        Batch { logits, tokens, mask }
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn sums_and_lengths_match_the_scalar_code(batch in any_batch()) {
        let ours = batch.log_probs(batch.logits(DType::F64)).sequence();
        let expected = batch.scalar();
        for (i, (sum, length)) in expected.into_iter().enumerate() {
            prop_assert!(error(to_vec(ours.sum())[i], sum) < 1e-12);
            prop_assert_eq!(to_vec(ours.lengths())[i], length);
            prop_assert!(error(to_vec(ours.mean())[i], sum / length.max(1.0)) < 1e-12);
        }
    }

    #[test]
    fn padding_changes_nothing(batch in any_batch(), before in 0_usize..3, after in 0_usize..4) {
        let padded = batch.padded(before, after);
        // Another width may sum in another order.
        let (ours, theirs) = (padded.sums(), batch.sums());
        prop_assert_eq!(ours.len(), theirs.len());
        for (a, b) in ours.into_iter().zip_equal(theirs) {
            prop_assert!(error(a, b) < 1e-14);
        }

        let logits = padded.logits(DType::F64).autodiff().require_grad();
        let sum = padded.log_probs(logits.clone()).sequence().sum().sum();
        let grads = sum.backward();
        let grad = to_vec(logits.grad(&grads).unwrap());
        prop_assert!(grad.iter().all(|g| g.is_finite()), "NaN of a padding row in the gradient");
    }

    #[test]
    fn gradients_match_the_softmax(batch in any_batch()) {
        let logits = batch.logits(DType::F64).autodiff().require_grad();
        let grads = batch.log_probs(logits.clone()).sequence().sum().sum().backward();
        let grad = to_vec(logits.grad(&grads).unwrap());
        let [_, time, vocab] = logits.dims();
        for (position, row) in batch.logits.concat().iter().enumerate() {
            let (b, t) = (position / time, position % time);
            let z: f64 = row.iter().map(|x| x.exp()).sum();
            let counted = t + 1 < time && batch.mask[b][t + 1];
            for (v, x) in row.iter().enumerate() {
                let hit = counted && batch.tokens[b][t + 1] == v;
                let expected = if counted { f64::from(u8::from(hit)) - x.exp() / z } else { 0.0 };
                prop_assert!(error(grad[position * vocab + v], expected) < 1e-12);
            }
        }
    }
}

fn small() -> Batch {
    Batch {
        logits: vec![
            vec![
                vec![1.0, -2.0, 0.5],
                vec![0.25, 4.0, -1.0],
                vec![9.0, 9.0, 9.0]
            ];
            2
        ],
        tokens: vec![vec![0, 2, 1], vec![1, 0, 2]],
        mask: vec![vec![true, true, true], vec![false, false, true]],
    }
}

#[test]
fn half_precision_is_upcast_before_the_normaliser() {
    for dtype in [DType::F16, DType::BF16] {
        if !device().supports_dtype(dtype) {
            continue; // NdArray has no half precision.
        }
        // 1024 equal logits: their exponentials sum to 1024·e⁸, beyond f16 and coarse in bf16.
        let wide = Batch {
            logits: vec![vec![vec![8.0; 1024]; 300]],
            tokens: vec![vec![3; 300]],
            mask: vec![vec![true; 300]],
        };
        let ours = wide.log_probs(wide.logits(dtype)).sequence();
        assert_eq!(ours.sum().dtype(), DType::F32);
        let expected = -299.0 * 1024_f64.ln();
        assert_close(&to_vec(ours.sum()), &[expected], 1e-6, "long sum");

        let small = small();
        let ours = to_vec(small.log_probs(small.logits(dtype)).sequence().sum());
        let expected: Vec<f64> = small.scalar().iter().map(|s| s.0).collect();
        assert_close(&ours, &expected, tolerance(dtype), "values");
    }
    let f32 = small()
        .log_probs(small().logits(DType::F32))
        .sequence()
        .sum();
    assert_eq!(f32.dtype(), DType::F32);
    if device().supports_dtype(DType::BF16) {
        let half = Tensor::<1>::from_data(TensorData::from([-1.5_f64]), (&device(), DType::BF16));
        assert_eq!(sequence(half, &[3]).sum().dtype(), DType::F32);
    }
}

#[test]
fn nothing_counts_for_a_masked_row() {
    let mut batch = small();
    batch.mask = vec![vec![true, false, false], vec![false; 3]];
    let logits = batch.logits(DType::F64).autodiff().require_grad();
    let sequence = batch.log_probs(logits.clone()).sequence();
    assert_eq!(to_vec(sequence.sum()), [0.0, 0.0]);
    assert_eq!(to_vec(sequence.mean()), [0.0, 0.0]);
    assert_eq!(
        to_vec(sequence.lengths()),
        [0.0, 0.0],
        "nothing predicts the first token"
    );
    let grads = sequence.mean().sum().backward();
    assert!(
        to_vec(logits.grad(&grads).unwrap())
            .iter()
            .all(|&g| g == 0.0)
    );
}

#[test]
fn ids_outside_the_vocabulary_never_give_a_number() {
    let tokens =
        |id: i32| Tensor::<2, Int>::from_data(TensorData::from([[0, id, 1], [1, 0, 2]]), &device());
    for id in [3, -1, i32::MAX, i32::MIN] {
        let batch = small();
        let of = |mask: Tensor<2, Bool>| {
            TokenLogProbs::from_output(batch.logits(DType::F64), tokens(id), mask)
                .unwrap()
                .sequence()
                .sum()
        };
        let sums = to_vec(of(batch.mask()));
        assert!(sums[0].is_nan() && sums[1].is_finite(), "counted: {sums:?}");
        let error = TokenLogProbs::check_tokens(&tokens(id), &batch.mask(), 3).unwrap_err();
        assert_eq!(error.name(), "tokens");
        assert_eq!(error.found(), format!("{id} at [0, 1]"));

        let mut masked = batch.clone();
        masked.mask[0][1] = false;
        assert!(to_vec(of(masked.mask())).iter().all(|x| x.is_finite()));
        assert!(TokenLogProbs::check_tokens(&tokens(id), &masked.mask(), 3).is_ok());
    }
}

#[test]
fn a_nan_logit_of_a_counted_row_gives_nan() {
    let mut batch = small();
    batch.logits[0][0][1] = f64::NAN;
    let sums = batch.sums();
    assert!(sums[0].is_nan() && sums[1].is_finite());
}

#[test]
fn impossible_tokens_have_minus_infinity_and_leave_others_alone() {
    let mut batch = small();
    batch.logits[0][0] = vec![0.0, f64::NEG_INFINITY, 0.0];
    batch.mask[0] = vec![false, true, false];
    assert_close(
        &batch.sums()[..1],
        &[-std::f64::consts::LN_2],
        1e-15,
        "1 of 2 possible",
    );
    batch.tokens[0][1] = 1;
    assert_eq!(batch.sums()[0], f64::NEG_INFINITY);
}

#[test]
fn restrict_counts_a_part() {
    let batch = small();
    let all = batch.log_probs(batch.logits(DType::F64));
    let mut part = batch.clone();
    part.mask = vec![vec![true, false, true], vec![true, true, true]];
    let restricted = all.clone().restrict(part.mask()).unwrap().sequence();
    part.mask = vec![vec![false, false, true], vec![false, false, true]];
    assert_eq!(to_vec(restricted.sum()), part.sums());
    assert_eq!(to_vec(restricted.lengths()), [1.0, 1.0]);
    let error = all.restrict(part.mask().narrow(1, 0, 2)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`mask`: expected shape [2, 3], found shape [2, 2]"
    );
}

/// Marks on the host, a tensor, and marks that were on another device: the same numbers.
#[test]
fn a_mask_is_of_marks_or_a_tensor() {
    let marks = [
        [true, false, true],
        [false, false, false],
        [false, true, true],
    ];
    let hidden: Vec<f64> = (0..9).map(|i| f64::from(i).sin()).collect();
    let hidden = f64s(&hidden).reshape([3, 3, 1]);
    let head = LmHead::new(f64s(&[1.0, -0.5]).reshape([2, 1]));
    let tokens = || ints(&[0, 1, 1, 0, 0, 1, 1, 1, 0]).reshape([3, 3]);
    let of = |mask: CompletionMask| {
        let output = (hidden.clone(), head.clone());
        TokenLogProbs::from_output(output, tokens(), mask).unwrap()
    };
    let tensor = Tensor::<2, Bool>::from_bool(marks, &device());
    let expected = of(tensor.into());
    assert_eq!(to_vec(expected.sequence().lengths()), [1.0, 0.0, 2.0]);
    assert!(to_vec(expected.sequence().sum())[2] < 0.0);
    let here = CompletionMask::from_data(marks, &device()).unwrap();
    let there = CompletionMask::from_data(marks, &elsewhere()).unwrap();
    assert_eq!(there.tensor().device(), elsewhere());
    for mask in [here, there.to_device(&device())] {
        let marked: Vec<bool> = mask.tensor().into_data().iter().collect();
        assert_eq!(marked, marks.concat());
        let ours = of(mask);
        assert_eq!(to_vec(ours.log_probs()), to_vec(expected.log_probs()));
        assert_eq!(ours.mask().into_data(), expected.mask().into_data());
    }

    let error = |data: TensorData| CompletionMask::from_data(data, &device()).unwrap_err();
    assert_eq!(
        error(TensorData::from([true, false])).to_string(),
        "`completion_mask`: expected two dimensions, found shape [2]"
    );
    assert_eq!(
        error(TensorData::from([[0_i32, 1]])).to_string(),
        "`completion_mask`: expected bools, found I32"
    );
}

#[test]
fn token_log_probs_from_elsewhere() {
    let values = f64s(&[-1.0, f64::NEG_INFINITY, f64::NAN, -2.0]).reshape([2, 2]);
    let mask = Tensor::<2, Bool>::from_bool([[true, false], [false, true]], &device());
    let ours = TokenLogProbs::new(values.clone(), mask.clone()).unwrap();
    assert_eq!(to_vec(ours.log_probs()), [-1.0, 0.0, 0.0, -2.0]);
    assert_eq!(to_vec(ours.sequence().sum()), [-1.0, -2.0]);
    assert_eq!(ours.mask().into_data(), mask.clone().into_data());
    assert!(TokenLogProbs::new(values, mask.narrow(0, 0, 1)).is_err());
}

#[test]
fn shapes_are_checked() {
    let batch = small();
    let logits = || batch.logits(DType::F64);
    let message = |result: Result<TokenLogProbs, burn_preference::InvalidInput>| {
        result.unwrap_err().to_string()
    };
    let short = batch.tokens().narrow(1, 0, 2);
    assert_eq!(
        message(TokenLogProbs::from_output(logits(), short, batch.mask())),
        "`tokens`: expected shape [2, 3], found shape [2, 2]"
    );
    let short = batch.mask().narrow(0, 0, 1);
    assert_eq!(
        message(TokenLogProbs::from_output(logits(), batch.tokens(), short)),
        "`completion_mask`: expected shape [2, 3], found shape [1, 3]"
    );
    let one = TokenLogProbs::from_output(
        logits().narrow(1, 0, 1),
        batch.tokens().narrow(1, 0, 1),
        batch.mask().narrow(1, 0, 1),
    );
    assert_eq!(
        message(one),
        "`logits`: expected time ≥ 2 and vocab ≥ 1, found shape [2, 1, 3]"
    );
    let error = SequenceLogProbs::new(f64s(&[0.0]), &[1, 2]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`lengths`: expected 1, one per sum, found 2"
    );
}
