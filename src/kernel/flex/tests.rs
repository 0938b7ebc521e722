//! Compares the kernel of a head with f64, on every kind of vectors that the machine has, in every
//! layout and number type of the weight, also on shapes for which the generic kernel is chosen.

use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{FloatDType, TensorData};
use proptest::prelude::*;
use pulp::Arch;

use super::comparison::{ForwardKl, JensenShannon, with_terms};
use super::head::{Pair, Problem};
use super::logits;
use super::tensors::{f32s, tensor};
use crate::kernel::discrepancy::Discrepancy;
use crate::kernel::forward::Save;
use crate::kernel::forward::{Forward, HeadGradients};
use crate::kernel::generic;
use crate::kernel::head::{Head, HeadForm, Shaping};

/// The kinds of vectors that this machine has, and none.
fn archs() -> Vec<Arch> {
    let mut archs = vec![Arch::Scalar, Arch::new()];
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    archs.extend(pulp::x86::V3::try_new().map(Arch::V3));
    archs
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

/// How a weight lies in memory.
#[derive(Debug, Clone, Copy)]
enum Stored {
    /// `[vocab, hidden]`
    WordsFirst,
    /// `[hidden, vocab]`, as in Burn's `Linear`.
    ColumnsFirst,
    /// `[vocab, hidden]`, a view of such a `[hidden, vocab]`.
    Transposed,
    /// `[vocab, hidden]`, some columns of a wider matrix.
    Narrowed,
    /// `[hidden, vocab]`, every word twice as far from the next one.
    Spread,
}

#[derive(Debug, Clone)]
struct Case {
    rows: usize,
    width: usize,
    vocab: usize,
    biased: bool,
    shaping: Shaping,
    stored: Stored,
    dtype: FloatDType,
    /// Another seed is another model.
    seed: u64,
    /// Bytes of deltas in a band of the backward.
    workspace: usize,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            rows: 40,
            width: 20,
            vocab: 500,
            biased: false,
            shaping: Shaping::NONE,
            stored: Stored::WordsFirst,
            dtype: FloatDType::F32,
            seed: 0,
            workspace: 4 << 20,
        }
    }
}

impl Case {
    fn head(&self) -> Head<Flex> {
        let &Self {
            rows, width, vocab, ..
        } = self;
        let targets: Vec<i64> = (0..rows).map(|row| (row * 7919 % vocab) as i64).collect();
        let some = |shape: [usize; 2], seed| {
            let numbers = numbers(shape[0] * shape[1], seed + 10 * self.seed);
            let numbers = tensor(numbers, shape);
            Flex::float_cast(numbers, self.dtype)
        };
        let weight = match self.stored {
            Stored::WordsFirst => some([vocab, width], 2),
            Stored::ColumnsFirst => some([width, vocab], 2),
            Stored::Transposed => some([width, vocab], 2).transpose(0, 1),
            Stored::Narrowed => some([vocab, width + 7], 2).narrow(1, 3, width),
            Stored::Spread => {
                let pairs = some([width, 2 * vocab], 2).reshape([width * vocab, 2].into());
                let firsts = pairs.narrow(1, 0, 1);
                let strides = [2 * vocab.cast_signed(), 2];
                let start = firsts.layout().start_offset();
                let layout = Layout::new([width, vocab].into(), strides.to_vec(), start);
                firsts.with_layout(layout)
            }
        };
        Head {
            hidden: some([rows, width], 1),
            weight,
            bias: some([1, vocab], 3).reshape([vocab].into()),
            targets: FlexTensor::from_data(TensorData::new(targets, [rows])),
            form: HeadForm {
                words_first: !matches!(self.stored, Stored::ColumnsFirst | Stored::Spread),
                biased: self.biased,
                shaping: self.shaping,
            },
        }
    }

    fn grad(&self) -> FlexTensor {
        tensor(numbers(self.rows, 4), [self.rows])
    }

    /// Rounding error of a gradient of the type of the operands.
    fn rounding(&self) -> f64 {
        let stored = match self.dtype {
            FloatDType::F16 => 1.0 / 2048.0,
            FloatDType::BF16 => 1.0 / 256.0,
            _ => 0.0,
        };
        rounding(self.width) + stored
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
    let stored = prop::sample::select(vec![
        Stored::WordsFirst,
        Stored::ColumnsFirst,
        Stored::Transposed,
        Stored::Narrowed,
        Stored::Spread,
    ]);
    let dtype = prop::sample::select(vec![FloatDType::F32, FloatDType::BF16, FloatDType::F16]);
    let workspace = prop::sample::select(&[0_usize, 1 << 15, 1 << 17, 4 << 20][..]);
    let all = (
        rows,
        width,
        vocab,
        any::<bool>(),
        shaping,
        stored,
        dtype,
        workspace,
    );
    all.prop_map(
        |(rows, width, vocab, biased, shaping, stored, dtype, workspace)| Case {
            rows,
            width,
            vocab,
            biased,
            shaping,
            stored,
            dtype,
            seed: 0,
            workspace,
        },
    )
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
        assert_eq!(ours.is_some(), exact.is_some(), "{name}");
        if let Some((ours, exact)) = ours.zip(exact) {
            close(name, &ours, &exact, bound);
        }
    }
}

/// Compares every mode of the kernel with f64, for any number of kept chunks and for bands of any
/// size.
fn check(case: &Case, arch: Arch) {
    let problem = || {
        let mut problem = Problem::on(arch, case.head());
        problem.workspace = case.workspace;
        problem
    };
    let head = doubled(case.head());
    let (bound, of_gradient) = (rounding(case.width), case.rounding());
    let exact = generic::head_forward(head.clone(), Save::Slope, true);
    forwards_agree(&problem().forward(0, true), &exact, bound);
    forwards_agree(&problem().forward_with_slope(true), &exact, bound);
    let grad = Flex::float_cast(case.grad(), FloatDType::F64);
    let tiles = exact.tiles.clone();
    let wanted = [true, true, case.biased];
    let gradients = generic::head_backward(head, exact.normalizer.clone(), tiles, grad, wanted);
    let all = 4 * case.rows.next_multiple_of(16) * case.vocab;
    let mut bits: Option<Vec<Vec<f64>>> = None;
    for bytes in [0, all / 2, usize::MAX] {
        let ours = problem().forward(bytes, true);
        forwards_agree(&ours, &exact, bound);
        let ours = problem().backward(&ours.normalizer, ours.tiles, &case.grad(), wanted);
        let dtype = case.head().hidden.dtype();
        assert!(ours.iter().flatten().take(2).all(|of| of.dtype() == dtype));
        let these = ours.iter().flatten().map(wide).collect();
        // Kept logits and recomputed logits must have the same bits, and so must the gradients.
        assert!(
            *bits.get_or_insert_with(|| Vec::clone(&these)) == these,
            "{bytes} bytes kept"
        );
        gradients_agree(ours, gradients.clone(), of_gradient);
    }
    // Without a gradient of the weight nothing overwrites the kept logits but their deltas.
    let ours = problem().forward(all / 2, false);
    let wanted = [true, false, case.biased];
    let ours = problem().backward(&ours.normalizer, ours.tiles, &case.grad(), wanted);
    let [hidden, _, bias] = gradients;
    gradients_agree(ours, [hidden, None, bias], of_gradient);
}

const KINDS: [Discrepancy; 3] = [
    Discrepancy::ForwardKl,
    Discrepancy::ReverseKl,
    Discrepancy::JensenShannon(0.3),
];

/// Compares divergences of two heads, and their gradients, with f64.
fn check_pair(case: &Case, reference: &Case, arch: Arch) {
    let heads = || [case.head(), reference.head()];
    let [policy, theirs] = heads().map(doubled);
    let grad = Flex::float_cast(case.grad(), FloatDType::F64);
    let wanted = [true, true, case.biased];
    let bound = case.rounding().max(reference.rounding());
    for kind in KINDS {
        let exact = generic::head_comparison(kind, &policy, &theirs, true);
        let compare = |slope: bool| {
            let pair = Pair::forward(arch, heads());
            let ours = with_terms!(kind, |terms| pair.compare(terms, slope));
            close("divergence", &ours.discrepancy, &exact.discrepancy, 2e-6);
            close("kept", &ours.kept, &exact.kept, 2e-6);
            ours
        };
        let slopes = [compare(true).slope, exact.slope.clone()];
        let [ours, of_exact] = slopes.map(|slope| slope.expect("asked for"));
        close("slope", &ours, &of_exact, rounding(case.width));

        let kept = compare(false).kept;
        let pair = Pair::backward(arch, heads());
        let ours = with_terms!(kind, |terms| {
            pair.gradients(terms, &kept, &case.grad(), wanted)
        });
        let kept = &exact.kept;
        let exact = generic::head_comparison_backward(kind, &policy, &theirs, kept, &grad, wanted);
        gradients_agree(ours, exact, bound);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn pairs_of_every_kind(
        case in case(),
        other in case(),
        arch in prop::sample::select(archs()),
    ) {
        let reference = Case {
            rows: case.rows,
            vocab: case.vocab,
            seed: 1,
            ..other
        };
        check_pair(&case, &reference, arch);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn heads_of_every_kind(case in case(), arch in prop::sample::select(archs())) {
        check(&case, arch);
    }
}

/// Many bands of a backward, and many chunks of a task: whether the gradient of the weight overwrites
/// the kept logits or not, and whichever of the two is longer.
#[test]
fn many_bands() {
    for stored in [Stored::WordsFirst, Stored::ColumnsFirst] {
        for (width, vocab) in [(8, 7001), (70, 2003)] {
            let case = Case {
                rows: 33,
                width,
                vocab,
                biased: true,
                stored,
                workspace: 0,
                ..Case::default()
            };
            check(&case, Arch::new());
            let reference = Case {
                seed: 1,
                ..case.clone()
            };
            check_pair(&case, &reference, Arch::new());
        }
    }
}

/// The divergence of nearly equal models has digits of its own, and that of equal models is 0.
#[test]
fn nearly_equal_models() {
    for (kind, arch) in KINDS
        .into_iter()
        .flat_map(|kind| archs().into_iter().map(move |arch| (kind, arch)))
    {
        let case = Case::default();
        let policy = case.head();
        let equal = Pair::forward(arch, [policy.clone(), policy.clone()]);
        let equal = with_terms!(kind, |terms| equal.compare(terms, true));
        let slope = wide(&equal.slope.expect("asked for"));
        let all = wide(&equal.discrepancy).into_iter().chain(slope);
        assert!(all.into_iter().all(|x| x.abs() < 1e-11), "{kind:?}");

        let mut reference = policy.clone();
        let weight: Vec<f32> = f32s(&policy.weight);
        let weight = weight.iter().zip(numbers(weight.len(), 9));
        let weight: Vec<f32> = weight.map(|(w, other)| w + 1e-3 * other).collect();
        reference.weight = tensor(weight, [case.vocab, case.width]);
        let [exact, theirs] = [policy.clone(), reference.clone()].map(doubled);
        let exact = generic::head_comparison(kind, &exact, &theirs, true);
        let pair = Pair::forward(arch, [policy, reference]);
        let ours = with_terms!(kind, |terms| pair.compare(terms, true));
        let values = wide(&ours.discrepancy)
            .into_iter()
            .zip(wide(&exact.discrepancy));
        for (ours, exact) in values {
            assert!((1e-8..1e-4).contains(&exact), "{exact}");
            assert!(
                (ours / exact - 1.0).abs() < 1e-3,
                "{kind:?}: {ours} and {exact}"
            );
        }
        let slopes = [ours.slope, exact.slope].map(|slope| wide(&slope.expect("asked for")));
        let largest = slopes[1].iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        for (ours, exact) in slopes[0].iter().zip(&slopes[1]) {
            assert!(
                (ours - exact).abs() < 1e-3 * largest,
                "{kind:?}: {ours} and {exact}"
            );
        }
    }
}

/// Words that one model or both rule out, of heads and of logits.
#[test]
fn words_that_are_ruled_out() {
    let case = Case {
        biased: true,
        ..Case::default()
    };
    let ruling_out = |words: &[usize], seed: u64| {
        let mut head = Case {
            seed,
            ..case.clone()
        }
        .head();
        let mut bias = f32s(&head.bias);
        for word in words {
            bias[*word] = f32::NEG_INFINITY;
        }
        head.bias = tensor(bias, [case.vocab]);
        head
    };
    let compare = |kind: Discrepancy, policy: &[usize], reference: &[usize]| {
        let heads = [ruling_out(policy, 0), ruling_out(reference, 1)];
        let [ours, theirs] = heads.clone().map(|head| {
            let hidden = head.hidden.clone();
            generic::logits::<Flex>(hidden, &head)
        });
        let counted = FlexTensor::from_data(TensorData::new(vec![true; case.rows], [case.rows]));
        let of_logits = with_terms!(kind, |terms| logits::compare(
            terms,
            [&ours, &theirs],
            &counted
        ));
        let pair = Pair::forward(Arch::new(), heads);
        let of_heads = with_terms!(kind, |terms| pair.compare(terms, true));
        let slope = wide(&of_heads.slope.expect("asked for"));
        let values = wide(&of_heads.discrepancy);
        let finite = values.iter().all(|x| x.is_finite());
        if finite {
            close(
                "logits",
                &of_logits.discrepancy,
                &of_heads.discrepancy,
                1e-5,
            );
        } else {
            let of_logits = wide(&of_logits.discrepancy);
            assert!(values.iter().chain(&of_logits).all(|x| *x == f64::INFINITY));
        }
        (finite, slope.iter().all(|x| x.is_finite()))
    };
    let [both, policy, reference] = [[&[3][..], &[3]], [&[3, 7], &[3]], [&[3], &[3, 5]]];
    for kind in KINDS {
        assert_eq!(compare(kind, both[0], both[1]), (true, true), "{kind:?}");
        let by_policy = (kind != Discrepancy::ForwardKl, true);
        assert_eq!(compare(kind, policy[0], policy[1]), by_policy, "{kind:?}");
        let by_reference = kind != Discrepancy::ReverseKl;
        let by_reference = (by_reference, by_reference);
        assert_eq!(
            compare(kind, reference[0], reference[1]),
            by_reference,
            "{kind:?}"
        );
    }
}

/// Divergences from given logits, with rows that do not count.
#[test]
fn divergences_of_logits() {
    for (rows, vocab) in [(3, 1), (3, 15), (2, 16), (4, 100), (3, 5003)] {
        let some = |seed| {
            let mut all = numbers(rows * vocab, seed);
            for x in &mut all {
                *x *= 3.0;
            }
            all[..vocab].fill(f32::NAN);
            tensor(all, [rows, vocab])
        };
        let (ours, theirs, grad) = (some(1), some(2), tensor(numbers(rows, 3), [rows]));
        let counted: Vec<bool> = (0..rows).map(|row| row != 0).collect();
        let counted = FlexTensor::from_data(TensorData::new(counted, [rows]));
        let wide = |tensor: &FlexTensor| Flex::float_cast(tensor.clone(), FloatDType::F64);
        for kind in KINDS {
            let exact =
                generic::logits_comparison::<Flex>(kind, &wide(&ours), &wide(&theirs), &counted);
            let found = with_terms!(kind, |terms| logits::compare(
                terms,
                [&ours, &theirs],
                &counted
            ));
            // A NaN of the reference reaches the divergence and the gradient of its row.
            let mut unknown = f32s(&theirs);
            unknown[vocab] = f32::NAN;
            let unknown = tensor(unknown, [rows, vocab]);
            let of = logits::Compared {
                theirs: &unknown,
                counted: &counted,
                kept: &with_terms!(kind, |terms| {
                    logits::compare(terms, [&ours, &unknown], &counted)
                })
                .kept,
                grad: &grad,
            };
            let gradient = with_terms!(kind, |terms| {
                logits::compared_gradient(terms, ours.clone(), of)
            });
            assert!(
                f32s(&gradient)[vocab..2 * vocab].iter().all(|x| x.is_nan()),
                "{kind:?}"
            );

            let [found_values, exact_values] = [&found.discrepancy, &exact.discrepancy]
                .map(|values| values.narrow(0, 1, rows - 1));
            close("divergence", &found_values, &exact_values, 1e-6);
            let exact = generic::logits_comparison_backward::<Flex>(
                kind,
                &wide(&ours),
                &wide(&theirs),
                &counted,
                &exact.kept,
                &wide(&grad),
            );
            let of = logits::Compared {
                theirs: &theirs,
                counted: &counted,
                kept: &found.kept,
                grad: &grad,
            };
            let found = with_terms!(kind, |terms| {
                logits::compared_gradient(terms, ours.clone(), of)
            });
            close("gradient", &found, &exact, 1e-6);
        }
    }
}

/// With only one word, this word is certain. So every gradient is 0, with and without a softcap.
#[test]
fn the_only_word() {
    for (arch, softcap) in archs()
        .into_iter()
        .flat_map(|arch| [(arch, None), (arch, Some(3.0))])
    {
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
            ..Case::default()
        };
        let problem = Problem::on(arch, case.head());
        let normalizer = problem.forward(0, false).normalizer;
        let gradients = problem.backward(&normalizer, Vec::new(), &case.grad(), [true; 3]);
        for gradient in gradients.into_iter().flatten() {
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
    for stored in [Stored::WordsFirst, Stored::ColumnsFirst] {
        let case = Case {
            rows: 130,
            width: 70,
            vocab: 1003,
            biased: true,
            stored,
            ..Case::default()
        };
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().expect("threads").install(|| {
                let problem = Problem::new(case.head());
                let slope = problem.forward_with_slope(true);
                let forward = problem.forward(1 << 18, true);
                let (normalizer, tiles) = (&forward.normalizer, forward.tiles);
                let gradients = problem.backward(normalizer, tiles, &case.grad(), [true; 3]);
                let mut all = vec![slope.slope.expect("asked for"), forward.log_probs];
                all.extend(gradients.into_iter().flatten());
                all.iter().map(f32s).collect::<Vec<_>>()
            })
        };
        let one = on(1);
        assert!([2, 3, 5].into_iter().all(|threads| on(threads) == one));
    }
}

/// The same of two heads.
#[test]
fn threads_of_a_pair() {
    let case = Case {
        rows: 130,
        width: 70,
        vocab: 1003,
        biased: true,
        ..Case::default()
    };
    let other = Case {
        seed: 1,
        stored: Stored::ColumnsFirst,
        ..case.clone()
    };
    let heads = || [case.head(), other.head()];
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().expect("threads").install(|| {
            let pair = Pair::forward(Arch::new(), heads());
            let forward = pair.compare(JensenShannon { beta: 0.3 }, true);
            let pair = Pair::backward(Arch::new(), heads());
            let terms = JensenShannon { beta: 0.3 };
            let gradients = pair.gradients(terms, &forward.kept, &case.grad(), [true; 3]);
            let mut all = vec![forward.slope.expect("asked for"), forward.discrepancy];
            all.extend(gradients.into_iter().flatten());
            all.iter().map(f32s).collect::<Vec<_>>()
        })
    };
    let one = on(1);
    assert!([2, 3].into_iter().all(|threads| on(threads) == one));
}

/// A NaN or infinite logit changes only its own row.
#[test]
fn rows_that_are_not_finite() {
    let case = Case::default();
    for arch in archs() {
        let mut head = case.head();
        let mut hidden = numbers(40 * 20, 1);
        hidden[3 * 20] = f32::NAN;
        hidden[5 * 20] = f32::INFINITY;
        head.hidden = tensor(hidden, [40, 20]);
        let problem = Problem::on(arch, head);
        for of in [problem.forward(0, true), problem.forward_with_slope(true)] {
            let log_probs = wide(&of.log_probs);
            for (row, log_prob) in log_probs.into_iter().enumerate() {
                assert_eq!(log_prob.is_finite(), row != 3 && row != 5, "row {row}");
            }
            let top1 = wide(&of.statistics.expect("asked for"));
            assert!(top1[3 * 4 + 2].is_nan() && !top1[2 * 4 + 2].is_nan());
        }
    }
}

/// The largest logit may rise from one chunk to the next by any number, and the powers of the
/// slope with it.
#[test]
fn logits_that_rise() {
    for rise in [0.5, 3.0, 15.0, 40.0, 120.0] {
        let case = Case {
            rows: 70,
            width: 8,
            vocab: 1003,
            biased: true,
            ..Case::default()
        };
        let mut head = case.head();
        let bias = (0..1003).map(|word| (word / 200) as f32 * rise).collect();
        head.bias = tensor(bias, [1003]);
        let exact = generic::head_forward(doubled(head.clone()), Save::Slope, true);
        // A logit of 5·rise is rounded by half of this.
        let bound = 5.0 * f64::from(rise * f32::EPSILON) + 1e-6;
        for arch in archs() {
            // Several chunks: the largest logit rises between them.
            let ours = Problem::cut(arch, head.clone(), 64, 96).forward_with_slope(true);
            close(
                "slope",
                &ours.slope.expect("asked for"),
                exact.slope.as_ref().expect("asked for"),
                bound,
            );
        }
    }
}

/// A gradient of one row is a sum over the whole vocabulary. No chain of additions may be that
/// long.
#[test]
fn one_row_and_many_words() {
    for rows in [1, 2] {
        let case = Case {
            rows,
            width: 8,
            vocab: 200_003,
            ..Case::default()
        };
        let head = doubled(case.head());
        let exact = generic::head_forward(head.clone(), Save::Tiles(0), false);
        let grad = Flex::float_cast(case.grad(), FloatDType::F64);
        let wanted = [true, false, false];
        let [exact, ..] = generic::head_backward(head, exact.normalizer, Vec::new(), grad, wanted);
        let problem = Problem::new(case.head());
        let normalizer = problem.forward(0, false).normalizer;
        let [ours, ..] = problem.backward(&normalizer, Vec::new(), &case.grad(), wanted);
        close(
            "hidden",
            &ours.expect("asked for"),
            &exact.expect("asked for"),
            3e-6,
        );
    }
}

/// A batch may count no token at all.
#[test]
fn no_row() {
    for stored in [Stored::WordsFirst, Stored::ColumnsFirst] {
        let case = Case {
            rows: 0,
            vocab: 2003,
            biased: true,
            stored,
            ..Case::default()
        };
        let problem = Problem::new(case.head());
        let slope = problem.forward_with_slope(true).slope.expect("asked for");
        assert!(wide(&slope).is_empty());
        for bytes in [0, usize::MAX] {
            let forward = problem.forward(bytes, true);
            let (normalizer, tiles) = (&forward.normalizer, forward.tiles);
            let [hidden, weight, bias] =
                problem.backward(normalizer, tiles, &case.grad(), [true; 3]);
            assert!(wide(&hidden.expect("asked for")).is_empty());
            assert_eq!(wide(&weight.expect("asked for")), vec![0.0; 20 * 2003]);
            assert_eq!(wide(&bias.expect("asked for")), vec![0.0; 2003]);
        }
        let heads = || [case.head(), case.head()];
        let forward = Pair::forward(Arch::new(), heads()).compare(ForwardKl, true);
        assert!(wide(&forward.discrepancy).is_empty());
        let pair = Pair::backward(Arch::new(), heads());
        let [_, weight, _] = pair.gradients(ForwardKl, &forward.kept, &case.grad(), [true; 3]);
        assert_eq!(wide(&weight.expect("asked for")), vec![0.0; 20 * 2003]);
    }
}
