//! Compares both kernels with f64, also on shapes for which the dispatch would not choose them.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, FloatDType, TensorData};
use proptest::prelude::*;

use super::lanes::Lanes;
use super::tensors::{f32s, tensor};
use super::tiles::Tiles;
use crate::kernel::choice::panels;
use crate::kernel::forward::{Forward, HeadGradients, Save};
use crate::kernel::generic;
use crate::kernel::head::{Head, HeadForm, Shaping};

/// `None` on a machine without the vectors that the kernel needs.
fn lanes(head: &Head<Flex>) -> Option<Lanes> {
    panels(head).map(|panels| Lanes::new(head, panels))
}

fn wide(tensor: &FlexTensor) -> Vec<f64> {
    tensor.to_contiguous().into_data().iter::<f64>().collect()
}

/// Pseudo-random numbers between −1 and 1.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005);
        state = state.wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..len).map(next).collect()
}

#[derive(Debug, Clone)]
struct Case {
    rows: usize,
    width: usize,
    vocab: usize,
    biased: bool,
    shaping: Shaping,
}

impl Case {
    fn head(&self) -> Head<Flex> {
        let &Self {
            rows, width, vocab, ..
        } = self;
        let targets: Vec<i64> = (0..rows).map(|row| (row * 7919 % vocab) as i64).collect();
        Head {
            hidden: tensor(numbers(rows * width, 1), [rows, width]),
            weight: tensor(numbers(vocab * width, 2), [vocab, width]),
            bias: tensor(numbers(vocab, 3), [vocab]),
            targets: FlexTensor::from_data(TensorData::new(targets, [rows])),
            form: HeadForm {
                words_first: true,
                biased: self.biased,
                shaping: self.shaping,
            },
        }
    }

    fn grad(&self) -> FlexTensor {
        tensor(numbers(self.rows, 4), [self.rows])
    }
}

fn doubled(head: Head<Flex>) -> Head<Flex> {
    let wide = |tensor| Flex::float_cast(tensor, FloatDType::F64);
    Head {
        hidden: wide(head.hidden),
        weight: wide(head.weight),
        bias: wide(head.bias),
        ..head
    }
}

fn case() -> impl Strategy<Value = Case> {
    let rows = prop::sample::select(&[1_usize, 15, 16, 63, 64, 255, 257, 300][..]);
    let width = prop::sample::select(&[1_usize, 16, 17, 70, 300][..]);
    let vocab = prop::sample::select(&[1_usize, 5, 47, 97, 385, 1003][..]);
    let shaping = prop::sample::select(vec![
        Shaping::NONE,
        Shaping {
            scale: 0.5,
            temperature: 2.0,
            ..Shaping::NONE
        },
        Shaping {
            scale: 0.5,
            softcap: Some(3.0),
            temperature: 0.8,
        },
    ]);
    let all = (rows, width, vocab, any::<bool>(), shaping);
    all.prop_map(|(rows, width, vocab, biased, shaping)| Case {
        rows,
        width,
        vocab,
        biased,
        shaping,
    })
}

/// Asserts that no difference is above `bound` times the largest value.
fn close(name: &str, ours: &FlexTensor, theirs: &FlexTensor, bound: f64) {
    let (ours, theirs) = (wide(ours), wide(theirs));
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let largest = theirs.iter().fold(0.1, |max: f64, x| max.max(x.abs()));
    for (index, (a, b)) in ours.into_iter().zip(theirs).enumerate() {
        assert!(
            (a - b).abs() <= bound * largest,
            "{name}[{index}]: {a} and {b}"
        );
    }
}

/// The rounding error of f32 that a slope may have. A logit is a sum of `width` products. The
/// relative error of a probability is the absolute error of its logit.
fn rounding(width: usize) -> f64 {
    f64::from(f32::EPSILON) * (width as f64 / 3.0).max(42.0)
}

fn forwards_agree(ours: &Forward<Flex>, exact: &Forward<Flex>, slope: f64) {
    close("log-probs", &ours.log_probs, &exact.log_probs, 2e-6);
    let statistics = [ours, exact].map(|of| of.statistics.clone().expect("asked for"));
    close("statistics", &statistics[0], &statistics[1], 1e-5);
    if let (Some(ours), Some(exact)) = (&ours.slope, &exact.slope) {
        close("slope", ours, exact, slope);
    }
}

fn gradients_agree(ours: HeadGradients<Flex>, exact: HeadGradients<Flex>, bound: f64) {
    let names = ["hidden", "weight", "bias"];
    for (name, (ours, exact)) in names.into_iter().zip(ours.into_iter().zip(exact)) {
        close(name, &ours.expect(name), &exact.expect(name), bound);
    }
}

type Run<'a> = &'a dyn Fn(Save) -> Forward<Flex>;
type Back<'a> = &'a dyn Fn(&Forward<Flex>) -> HeadGradients<Flex>;

/// Compares every mode of a kernel with f64, for any number of kept tiles.
fn check(case: &Case, run: Run, back: Back) {
    let head = doubled(case.head());
    let bound = rounding(case.width);
    let exact = generic::head_forward(head.clone(), Save::Slope, true);
    forwards_agree(&run(Save::Nothing), &exact, bound);
    forwards_agree(&run(Save::Slope), &exact, bound);
    let grad = Flex::float_cast(case.grad(), FloatDType::F64);
    let tiles = exact.tiles.clone();
    let wanted = [true, true, case.biased];
    let gradients = generic::head_backward(head, exact.normalizer.clone(), tiles, grad, wanted);
    let gradients = gradients.map(|of| of.unwrap_or_else(|| tensor(vec![0.0], [1])));
    let all = 4 * case.rows.next_multiple_of(16) * case.vocab.next_multiple_of(2048);
    let mut bits: Option<Vec<Vec<f32>>> = None;
    for bytes in [0, all / 2, usize::MAX] {
        let ours = run(Save::Tiles(bytes));
        forwards_agree(&ours, &exact, bound);
        let ours = back(&ours).map(|of| of.unwrap_or_else(|| tensor(vec![0.0], [1])));
        let these: Vec<Vec<f32>> = ours.iter().map(f32s).collect();
        // Kept logits and recomputed logits must have the same bits, and so must the gradients.
        assert!(
            *bits.get_or_insert(these.clone()) == these,
            "{bytes} bytes kept"
        );
        gradients_agree(ours.map(Some), gradients.clone().map(Some), bound);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn rows_as_lanes(case in case()) {
        let head = case.head();
        prop_assume!(lanes(&head).is_some());
        let lanes = || lanes(&head).expect("as above");
        let wanted = [true, true, case.biased];
        check(
            &case,
            &|save| match save {
                Save::Nothing => lanes().forward(0, true),
                Save::Tiles(bytes) => lanes().forward(bytes, true),
                Save::Slope => lanes().forward_with_slope(true),
            },
            &|of| lanes().backward(&of.normalizer, of.tiles.clone(), &case.grad(), wanted),
        );
    }

    #[test]
    fn tiles_of_gemm(case in case()) {
        let tiles = || Tiles::new(case.head());
        let wanted = [true, true, case.biased];
        check(
            &case,
            &|save| match save {
                Save::Nothing => Tiles::of_reference(case.head()).forward(0, true),
                Save::Tiles(bytes) => tiles().forward(bytes, true),
                Save::Slope => tiles().forward_with_slope(true),
            },
            &|of| tiles().backward(&of.normalizer, of.tiles.clone(), &case.grad(), wanted),
        );
    }
}

/// With only one word, this word is certain. So every gradient is 0, with and without a softcap.
#[test]
fn the_only_word() {
    for softcap in [None, Some(3.0)] {
        let case = Case {
            rows: 257,
            width: 16,
            vocab: 1,
            biased: true,
            shaping: Shaping {
                scale: 0.5,
                softcap,
                temperature: 0.8,
            },
        };
        let tiles = Tiles::new(case.head());
        let normalizer = tiles.forward(0, false).normalizer;
        let mut all = vec![tiles.backward(&normalizer, Vec::new(), &case.grad(), [true; 3])];
        if let Some(lanes) = lanes(&case.head()) {
            let normalizer = lanes.forward(0, false).normalizer;
            all.push(lanes.backward(&normalizer, Vec::new(), &case.grad(), [true; 3]));
        }
        for gradient in all.into_iter().flatten().flatten() {
            assert_eq!(
                wide(&gradient).into_iter().find(|x| *x != 0.0),
                None,
                "{softcap:?}"
            );
        }
    }
}

/// The results have the same bits on any number of threads.
#[test]
fn threads() {
    let case = Case {
        rows: 300,
        width: 70,
        vocab: 2003,
        biased: true,
        shaping: Shaping::NONE,
    };
    let head = case.head();
    if lanes(&head).is_none() {
        return;
    }
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().expect("threads").install(|| {
            let lanes = lanes(&head).expect("as above");
            let slope = lanes.forward_with_slope(true);
            let forward = lanes.forward(1 << 20, true);
            let gradients =
                lanes.backward(&forward.normalizer, forward.tiles, &case.grad(), [true; 3]);
            let mut all = vec![slope.slope.expect("asked for"), forward.log_probs];
            all.extend(gradients.into_iter().flatten());
            all.iter().map(f32s).collect::<Vec<_>>()
        })
    };
    let one = on(1);
    assert!([2, 3, 5].into_iter().all(|threads| on(threads) == one));
}

/// A NaN or infinite logit changes only its own row.
#[test]
fn rows_that_are_not_finite() {
    let case = Case {
        rows: 40,
        width: 20,
        vocab: 500,
        biased: false,
        shaping: Shaping::NONE,
    };
    let mut head = case.head();
    let mut hidden = numbers(40 * 20, 1);
    hidden[3 * 20] = f32::NAN;
    hidden[5 * 20] = f32::INFINITY;
    head.hidden = tensor(hidden, [40, 20]);
    let Some(lanes) = lanes(&head) else {
        return;
    };
    for of in [lanes.forward(0, true), lanes.forward_with_slope(true)] {
        let log_probs = wide(&of.log_probs);
        for (row, log_prob) in log_probs.into_iter().enumerate() {
            assert_eq!(log_prob.is_finite(), row != 3 && row != 5, "row {row}");
        }
        let top1 = wide(&of.statistics.expect("asked for"));
        assert!(top1[3 * 4 + 2].is_nan() && !top1[2 * 4 + 2].is_nan());
    }
    assert_eq!(head.weight.dtype(), DType::F32);
}
