//! Log-probs from hidden states and a head: against scalar code and against the logits path.

use burn::nn::{EmbeddingConfig, LinearConfig, LinearLayout};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_preference::log_probs::WithStatistics;
use burn_preference::{
    KtoLossConfig, LmHead, Objective, PolicyPair, Ranked, SequenceLogProbs, TokenLogProbs,
    Unpaired, WithBaseline,
};
use proptest::prelude::*;

use crate::problem::{FROZEN, How, LAYOUTS, Problem, REFERENCE, Shaping, TRAINABLE, noise, values};
use crate::subjects;
use crate::support::{
    ZipEqual, assert_close, bools, cases, device, elsewhere, error, keeps_nan, to_vec, tolerance,
};

prop_compose! {
    fn any_problem()(
        shape in (1_usize..4, 2_usize..8, 1_usize..49, 1_usize..34),
        seed in any::<u32>(),
        biased in any::<bool>(),
        shaping in any_shaping(),
    ) -> Problem {
        let (batch, time, vocab, width) = shape;
        let problem = Problem::new([batch, time, vocab, width], seed.into()).shaped(shaping);
        if biased { problem } else { problem.without_bias() }
    }
}

/// Most heads do nothing to their logits, Granite scales, Gemma 2 caps; and all at once.
pub fn any_shaping() -> impl Strategy<Value = Shaping> {
    let any = (0.1..2.0_f64, 0.5..20.0_f64, 0.3..3.0_f64);
    prop_oneof![
        2 => Just(Shaping::NONE),
        1 => any.clone().prop_map(|(scale, _, _)| Shaping { scale, ..Shaping::NONE }),
        1 => any.clone().prop_map(|(_, cap, _)| Shaping { softcap: Some(cap), ..Shaping::NONE }),
        1 => any.prop_map(|(scale, cap, temperature)| Shaping {
            scale,
            softcap: Some(cap),
            temperature,
        }),
    ]
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn head_matches_the_scalar_code(
        problem in any_problem(),
        layout in prop::sample::select(&LAYOUTS[..]),
        (hidden, weight) in any::<(bool, bool)>(),
        retained_bytes in prop::sample::select(&[0, 1 << 20][..]),
        checkpointed in any::<bool>(),
    ) {
        for dtype in [DType::F32, DType::F64] {
            let how = How { dtype, layout, hidden, weight, retained_bytes, checkpointed, ..TRAINABLE };
            problem.check(how, tolerance(dtype));
        }
    }

    #[test]
    fn both_paths_agree(problem in any_problem()) {
        for dtype in [DType::F32, DType::F64] {
            let how = How { dtype, ..TRAINABLE };
            let from_hidden = problem.run(how);
            let from_logits = problem.run(How { from_logits: true, ..how });
            let [ours, theirs] = [from_hidden, from_logits]
                .map(|result| [result.log_probs, result.hidden, result.weight, result.bias]);
            for (ours, theirs) in ours.iter().zip_equal(&theirs) {
                prop_assert_eq!(ours.len(), theirs.len());
                for (&a, &b) in ours.iter().zip_equal(theirs) {
                    prop_assert!(error(a, b) < tolerance(dtype));
                }
            }
        }
    }
}

/// Logits for sampling: of one position as well, and of none. `both_paths_agree` has their
/// gradients.
#[test]
fn logits_of_hidden_states() {
    let shaping = Shaping {
        scale: 0.5,
        softcap: Some(3.0),
        temperature: 0.8,
    };
    let problem = Problem::new([2, 1, 11, 5], 6).shaped(shaping);
    let expected = [0, 1].map(|row| problem.logits(row).into_iter().map(|(x, _)| x));
    let expected: Vec<f64> = expected.into_iter().flatten().collect();
    for dtype in crate::support::dtypes() {
        let of = |values: &[f64], shape: [usize; 2]| Problem::floats(values, shape, dtype);
        let bias = of(problem.bias.as_ref().unwrap(), [1, 11]).reshape([11]);
        let head = shaping.head(LmHead::new(of(&problem.weight, [11, 5])).with_bias(bias));
        let states = of(&problem.hidden, [2, 5]).reshape([2, 1, 5]);
        let logits = head.logits(states.clone()).unwrap();
        assert_eq!(logits.dims(), [2, 1, 11]);
        assert!(logits.dtype().size() >= 4, "{dtype:?}");
        assert_close(&to_vec(logits), &expected, tolerance(dtype), "logits");
        let none = head.logits(Tensor::zeros([0, 3, 5], (&device(), dtype)));
        assert_eq!(none.unwrap().dims(), [0, 3, 11]);
        let narrow = head.logits(states.narrow(2, 0, 4)).unwrap_err();
        assert_eq!(narrow.name(), "head.weight");
    }
}

/// More rows and words than one tile has, and not a multiple of it.
#[test]
fn several_tiles() {
    let problem = Problem::new([2, 400, 4500, 3], 1);
    let tile = 2 * 512 * 2048 * 4; // of two blocks of rows
    for layout in LAYOUTS {
        for retained_bytes in [0, tile, usize::MAX] {
            let how = How {
                dtype: DType::F32,
                layout,
                retained_bytes,
                ..TRAINABLE
            };
            problem.check(how, 2e-4);
        }
    }
    for how in [FROZEN, REFERENCE] {
        let dtype = DType::F32;
        problem.check(How { dtype, ..how }, 1e-4);
    }
}

/// A softcap in every kind of gradient, over several tiles: what is kept, and what is not.
#[test]
fn several_tiles_under_a_softcap() {
    let shaping = Shaping {
        scale: 1.5,
        softcap: Some(2.5),
        temperature: 0.7,
    };
    let problem = || Problem::new([2, 300, 2300, 3], 17);
    let (capped, scaled) = (
        problem().shaped(shaping),
        problem().shaped(Shaping {
            softcap: None,
            ..shaping
        }),
    );
    let dtype = DType::F32;
    for retained_bytes in [0, usize::MAX] {
        let how = How {
            dtype,
            retained_bytes,
            ..TRAINABLE
        };
        capped.check(how, 3e-4);
        scaled.check(how, 3e-4);
    }
    for how in [FROZEN, REFERENCE] {
        capped.check(How { dtype, ..how }, 2e-4);
        scaled.check(How { dtype, ..how }, 2e-4);
    }
}

/// Logits that reach the cap, and hidden states that would overflow without it.
#[test]
fn a_softcap_holds_the_extremes() {
    let of = |values: &[f64], shape: [usize; 2], dtype| {
        Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), (&device(), dtype))
    };
    for dtype in [DType::F32, DType::F64] {
        let hidden = of(&[1e15, 1e15], [2, 1], dtype).autodiff().require_grad();
        let weight = of(&[1e15, -1e15, 0.0], [3, 1], dtype);
        let head = LmHead::new(weight).with_softcap(30.0).unwrap();
        let tokens = Tensor::<2, Int>::from_ints([[0, 1]], &device());
        let counted = tokens.clone().equal_elem(1);
        let states = hidden.clone().reshape([1, 2, 1]);
        let log_probs = TokenLogProbs::from_output((states, head), tokens, counted).unwrap();
        // Logits 30, −30 and 0.
        let found = to_vec(log_probs.log_probs())[0];
        assert!(error(found, -60.0) < 1e-6, "{dtype:?}: {found}");
        let grads = log_probs.log_probs().sum().backward();
        assert!(
            to_vec(hidden.grad(&grads).unwrap())
                .iter()
                .all(|g| g.is_finite())
        );
    }
}

#[test]
fn what_shapes_logits_is_checked() {
    let head = || LmHead::new(Tensor::zeros([2, 2], (&device(), DType::F32)));
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-60] {
        assert_eq!(
            head().with_logit_scale(bad).unwrap_err().name(),
            "logit_scale"
        );
        assert_eq!(head().with_softcap(bad).unwrap_err().name(), "softcap");
        assert_eq!(
            head().with_temperature(bad).unwrap_err().name(),
            "temperature"
        );
    }
}

/// Hidden states wider than what one task writes of a weight's gradient.
#[test]
fn wide_hidden_states() {
    let problem = Problem::new([1, 5, 40, 300], 8);
    for layout in LAYOUTS {
        let dtype = DType::F32;
        problem.check(
            How {
                dtype,
                layout,
                ..TRAINABLE
            },
            1e-4,
        );
    }
}

/// So many rows and words that a task of a frozen head's forward walks several tiles, each with a
/// larger logit, and rescales what it has summed so far; and that the backward of a trained head
/// works through its tiles in several groups.
#[test]
fn several_tiles_of_one_task() {
    if device() != Device::flex() {
        return; // Only Flex has tiles, and this is large.
    }
    let (rows, vocab) = (8 * 512, 3 * 2048 + 5);
    let column = |n: usize, of: fn(usize) -> f32| {
        let pair = |i| [of(i), (i % 7) as f32 * 0.1];
        let values: Vec<f32> = (0..n).flat_map(pair).collect();
        Tensor::<2>::from_data(TensorData::new(values, [n, 2]), &device()).autodiff()
    };
    let hidden = || column(8 * 512, |i| ((i * 7) % 11) as f32 * 0.1 - 0.2).require_grad();
    // Logits grow along the words where the hidden state is positive, and fall where it is not.
    let weight = || column(3 * 2048 + 5, |w| w as f32 * 4e-3);
    let ids: Vec<i32> = (0..4096).map(|i| i * 37 % 6149).collect();
    let tokens = Tensor::<1, Int>::from_data(ids.as_slice(), &device()).reshape([8, 512]);
    let counted = || tokens.clone().greater_equal_elem(0);
    let gradients = |log_probs: TokenLogProbs, of: [Tensor<2>; 2]| {
        let grads = log_probs.log_probs().sum().backward();
        let [hidden, weight] = of.map(|leaf| leaf.grad(&grads).map(to_vec).unwrap_or_default());
        [to_vec(log_probs.log_probs()), hidden, weight]
    };
    let by_head = |weight: Tensor<2>, head: LmHead| {
        let hidden = hidden();
        let states = hidden.clone().reshape([8, 512, 2]);
        let log_probs = TokenLogProbs::from_output((states, head), tokens.clone(), counted());
        gradients(log_probs.unwrap(), [hidden, weight])
    };
    let [log_probs, d_hidden, d_weight] = {
        let (hidden, weight) = (hidden(), weight().require_grad());
        let logits = hidden.clone().matmul(weight.clone().transpose());
        let logits = logits.reshape([8, 512, vocab]);
        let log_probs = TokenLogProbs::from_output(logits, tokens.clone(), counted());
        gradients(log_probs.unwrap(), [hidden, weight])
    };
    assert_eq!(d_hidden.len(), 2 * rows);
    let check = |name: &str, ours: [Vec<f64>; 3], trained: bool| {
        assert_close(&ours[0], &log_probs, 1e-4, name);
        assert_close(&ours[1], &d_hidden, 1e-4, name);
        let d_weight = if trained { &d_weight[..] } else { &[] };
        assert_close(&ours[2], d_weight, 1e-4, name);
    };
    let frozen = weight();
    check(
        "frozen",
        by_head(frozen.clone(), LmHead::new(frozen)),
        false,
    );
    let trained = weight().require_grad();
    check(
        "trained",
        by_head(trained.clone(), LmHead::new(trained)),
        true,
    );
    let trained = weight().require_grad();
    let columns = LmHead::transposed(trained.clone().transpose());
    check("by columns", by_head(trained, columns), true);
}

/// In every number type, on logits that no rounding reorders.
#[test]
fn the_likeliest_word() {
    for dtype in crate::support::dtypes() {
        let of = |values: Vec<f32>, shape: [usize; 2]| {
            Tensor::<2>::from_data(TensorData::new(values, shape), (&device(), dtype))
        };
        // Logits −h, 0, h, h: words 2 and 3 tie.
        let head = LmHead::new(of(vec![-1.0, 0.0, 1.0, 1.0], [4, 1]));
        let hidden = of(vec![1.0, 1.0, 1.0, -1.0, -1.0, 0.0, 0.0], [7, 1]).reshape([1, 7, 1]);
        let tokens = Tensor::<2, Int>::from_ints([[0, 2, 3, 1, 0, 2, 1]], &device());
        let counted = tokens.clone().greater_equal_elem(0);
        // Of the largest the first one, as by an argmax: word 2 of words 2 and 3, word 0 of all.
        let expected = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0];
        let logits = hidden.clone() * of(vec![-1.0, 0.0, 1.0, 1.0], [1, 4]).unsqueeze::<3>();
        let by_hidden = TokenLogProbs::from_output(
            WithStatistics((hidden, head)),
            tokens.clone(),
            counted.clone(),
        );
        let by_logits = TokenLogProbs::from_output(WithStatistics(logits), tokens, counted);
        for (_, statistics) in [by_hidden.unwrap(), by_logits.unwrap()] {
            assert_eq!(to_vec(statistics.top1()), expected, "{dtype:?}");
        }
    }
}

/// A NaN among the logits leaves no likeliest word, on every path that keeps NaN.
#[test]
fn the_likeliest_word_of_nan_is_nan() {
    if !keeps_nan() {
        return;
    }
    for dtype in crate::support::dtypes() {
        let of = |values: Vec<f32>, shape: [usize; 3]| {
            Tensor::<3>::from_data(TensorData::new(values, shape), (&device(), dtype))
        };
        for bad in 0..3 {
            let mut logits = vec![0.5, 0.25, 0.125];
            logits[bad] = f32::NAN;
            let tokens = Tensor::<2, Int>::from_ints([[0, 1]], &device());
            let counted = tokens.clone().equal_elem(1);
            let row = [logits.clone(), vec![0.0; 3]].concat();
            let by_logits = TokenLogProbs::from_output(
                WithStatistics(of(row, [1, 2, 3])),
                tokens.clone(),
                counted.clone(),
            );
            let head = LmHead::new(of(logits, [1, 3, 1]).reshape([3, 1]));
            let hidden = of(vec![1.0, 1.0], [1, 2, 1]);
            let by_hidden =
                TokenLogProbs::from_output(WithStatistics((hidden, head)), tokens, counted);
            for (log_probs, statistics) in [by_logits.unwrap(), by_hidden.unwrap()] {
                assert!(to_vec(log_probs.log_probs())[0].is_nan());
                assert!(to_vec(statistics.top1())[0].is_nan(), "{dtype:?}, {bad}");
            }
        }
    }
}

/// The backward of logits writes into their buffer, but not where they are a part of another one.
#[test]
fn logits_that_are_a_view() {
    let whole = |n: usize| (0..n).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>();
    let run = |first: usize, rows: usize, copied: bool| {
        let data = TensorData::new(whole(5 * 3 * 4), [5, 3, 4]);
        let leaf = Tensor::<3>::from_data(data, &device())
            .autodiff()
            .require_grad();
        let mut logits = leaf.clone().narrow(0, first, rows);
        if copied {
            logits = logits * 1.0;
        }
        let tokens = Tensor::<2, Int>::ones([rows, 3], &device());
        let counted = tokens.clone().equal_elem(1);
        let log_probs = TokenLogProbs::from_output(logits, tokens, counted).unwrap();
        let grads = log_probs.log_probs().sum().backward();
        [to_vec(leaf.grad(&grads).unwrap()), to_vec(leaf)]
    };
    for (first, rows) in [(0, 5), (0, 2), (2, 2), (3, 2)] {
        assert_eq!(
            run(first, rows, false),
            run(first, rows, true),
            "{first} {rows}"
        );
    }
}

/// The same bits on any number of threads.
#[test]
fn threads_change_nothing() {
    let problem = Problem::new([2, 300, 2300, 9], 21);
    for how in [TRAINABLE, FROZEN, REFERENCE] {
        for layout in LAYOUTS {
            let on = |threads: usize| {
                let dtype = DType::F32;
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let how = How {
                    dtype,
                    layout,
                    ..how
                };
                pool.unwrap().install(|| problem.run(how))
            };
            let one = on(1);
            for threads in [2, 3, 8] {
                assert_eq!(on(threads), one, "{threads} threads, {how:?}");
            }
        }
    }
}

#[test]
fn half_precision() {
    // Numbers that both types hold exactly: what is left is the kernel's own rounding.
    let mut problem = Problem::new([2, 9, 47, 31], 5);
    problem.coarsen();
    for dtype in [DType::F16, DType::BF16] {
        if !device().supports_dtype(dtype) {
            continue; // NdArray has no half precision.
        }
        for layout in LAYOUTS {
            problem.check(
                How {
                    dtype,
                    layout,
                    ..TRAINABLE
                },
                tolerance(dtype),
            );
        }
        problem.check(How { dtype, ..FROZEN }, tolerance(dtype));
    }
}

#[test]
fn vocabularies_and_batches_at_the_edge() {
    for shape in [[1, 2, 1, 1], [1, 2, 1, 3], [3, 3, 47, 31], [1, 2, 17, 1]] {
        let mut problem = Problem::new(shape, 9);
        problem.mask.fill(true);
        for how in [TRAINABLE, FROZEN, REFERENCE] {
            for dtype in [DType::F32, DType::F64] {
                problem.check(How { dtype, ..how }, tolerance(dtype));
            }
        }
    }
    let certain = Problem::new([1, 3, 1, 2], 2).run(TRAINABLE);
    assert_eq!(certain.log_probs, [0.0, 0.0], "one word has probability 1");
    assert!(certain.weight.iter().all(|&g| g == 0.0));
}

#[test]
fn nothing_counts() {
    let mut problem = Problem::new([2, 4, 7, 3], 3);
    problem.mask.fill(false);
    problem.hidden.fill(f64::NAN);
    for how in [TRAINABLE, FROZEN, REFERENCE] {
        for dtype in [DType::F32, DType::F64] {
            let ours = problem.run(How { dtype, ..how });
            for values in [&ours.log_probs, &ours.hidden, &ours.weight, &ours.bias] {
                assert!(values.iter().all(|&x| x == 0.0), "{how:?}: {ours:?}");
            }
        }
    }

    let mut empty = Problem::new([1, 4, 7, 3], 3);
    empty.batch = 0;
    (empty.tokens, empty.mask) = (Vec::new(), Vec::new());
    empty.hidden.clear();
    let states = Problem::floats(&empty.hidden, [0, 4, 3], DType::F32)
        .autodiff()
        .require_grad();
    let head = LmHead::new(Problem::floats(&empty.weight, [7, 3], DType::F32));
    let none = TokenLogProbs::from_output((states, head), empty.tokens(), empty.mask()).unwrap();
    assert_eq!(none.log_probs().dims(), [0, 3]);
}

/// NaN and infinities reach the rows that they belong to, and no others.
#[test]
fn what_is_not_finite_stays_where_it_is() {
    for dtype in [DType::F32, DType::F64] {
        let how = How { dtype, ..TRAINABLE };
        let mut problem = Problem::new([2, 3, 40, 5], 4);
        problem.mask.fill(true);
        let clean = problem.run(how);
        problem.hidden[7] = f64::NAN;
        for how in [
            how,
            How {
                weight: false,
                ..how
            },
        ] {
            let ours = problem.run(how);
            assert_eq!(ours.log_probs.len(), clean.log_probs.len());
            assert_eq!(ours.hidden.len(), clean.hidden.len());
            for (row, (a, b)) in ours
                .log_probs
                .iter()
                .zip_equal(&clean.log_probs)
                .enumerate()
            {
                assert!(
                    if row == 1 {
                        a.is_nan()
                    } else {
                        error(*a, *b) < 1e-6
                    },
                    "{how:?} {row}"
                );
            }
            for (index, (a, b)) in ours.hidden.iter().zip_equal(&clean.hidden).enumerate() {
                assert!(if index / 5 == 1 {
                    a.is_nan()
                } else {
                    error(*a, *b) < 1e-5
                });
            }
        }

        // A word that the bias rules out, then one that is the target, then nothing else left.
        let mut problem = Problem::new([1, 2, 20, 5], 4);
        problem.mask.fill(true);
        problem.tokens[1] = 3;
        problem.bias.as_mut().unwrap()[5] = f64::NEG_INFINITY;
        let ours = problem.run(how);
        let expected = problem.scalar();
        assert_close(&ours.log_probs, &expected.log_probs, 1e-5, "ruled out");
        assert_close(&ours.bias, &expected.bias, 1e-5, "d bias");
        assert_close(
            &ours.statistics[0],
            &expected.statistics[0],
            1e-5,
            "entropy",
        );
        problem.tokens[1] = 5;
        let ours = problem.run(how);
        assert_eq!(ours.log_probs, [f64::NEG_INFINITY]);
        assert!(ours.hidden.iter().all(|g| g.is_finite()));
        problem.bias.as_mut().unwrap().fill(f64::NEG_INFINITY);
        assert!(problem.run(how).log_probs[0].is_nan());
        problem.bias.as_mut().unwrap()[2] = f64::INFINITY;
        assert!(problem.run(how).log_probs[0].is_nan());

        // Logits of ±10⁴: the probabilities are exact, whatever the magnitude.
        let mut problem = Problem::new([1, 4, 20, 5], 6);
        problem.mask.fill(true);
        problem.bias = Some((0..20).map(|v| 1e4 - f64::from(v)).collect());
        problem.weight.fill(0.0);
        problem.check(how, if dtype == DType::F64 { 1e-11 } else { 1e-6 });
    }
}

#[test]
fn ids_outside_the_vocabulary_never_give_a_number() {
    let problem = Problem::new([1, 3, 4, 2], 8);
    let states = Problem::floats(&problem.hidden, [1, 3, 2], DType::F32);
    let head = LmHead::new(Problem::floats(&problem.weight, [4, 2], DType::F32));
    let mask = || bools(&[false, true, true]).reshape([1, 3]);
    for id in [4, -1, i32::MAX, i32::MIN] {
        let tokens = Tensor::<2, Int>::from_data(TensorData::from([[0, id, 1]]), &device());
        let (log_probs, statistics) = TokenLogProbs::from_output(
            WithStatistics((states.clone(), head.clone())),
            tokens,
            mask(),
        )
        .unwrap();
        let ours = to_vec(log_probs.log_probs());
        assert!(ours[0].is_nan() && ours[1].is_finite(), "{id}: {ours:?}");
        for values in values(&statistics) {
            assert!(values[0].is_nan() && values[1].is_finite());
        }
    }
}

#[test]
fn layers_of_burn_are_heads() {
    let problem = Problem::new([2, 5, 11, 3], 12);
    let tokens = || (problem.tokens(), problem.mask());
    let states = || Problem::floats(&problem.hidden, [2, 5, 3], DType::F32);
    let agree = |head: &LmHead, logits: Tensor<3>| {
        let (ids, mask) = tokens();
        let ours = TokenLogProbs::from_output((states(), head.clone()), ids, mask).unwrap();
        let (ids, mask) = tokens();
        let theirs = TokenLogProbs::from_output(logits, ids, mask).unwrap();
        assert_close(
            &to_vec(ours.log_probs()),
            &to_vec(theirs.log_probs()),
            1e-5,
            "log-probs",
        );
    };
    for layout in [LinearLayout::Row, LinearLayout::Col] {
        for bias in [false, true] {
            let linear = LinearConfig::new(3, 11).with_bias(bias).with_layout(layout);
            let linear = linear.init(&device());
            agree(&LmHead::from(&linear), linear.forward(states()));
        }
    }
    let embedding = EmbeddingConfig::new(11, 3).init(&device());
    let matrix = embedding.weight.val().transpose().unsqueeze();
    agree(&LmHead::from(&embedding), states().matmul(matrix));
}

#[test]
fn errors_name_what_does_not_fit() {
    let problem = Problem::new([2, 3, 5, 4], 2);
    let f32s = |values: &[f64], shape| Problem::floats(values, shape, DType::F32);
    let states = || Problem::floats(&problem.hidden, [2, 3, 4], DType::F32);
    let message = |states: Tensor<3>, head: &LmHead| {
        TokenLogProbs::from_output((states, head.clone()), problem.tokens(), problem.mask())
            .unwrap_err()
            .to_string()
    };
    let head = LmHead::new(f32s(&problem.weight, [5, 4]));
    assert_eq!(
        message(states(), &LmHead::transposed(f32s(&problem.weight, [5, 4]))),
        "`head.weight`: expected vocab ≥ 1, hidden 4 ≥ 1, found vocab 4, hidden 5"
    );
    assert_eq!(
        message(
            states(),
            &LmHead::new(Problem::floats(&problem.weight, [5, 4], DType::F64))
        ),
        "`head.weight`: expected F32, found F64"
    );
    let nothing = |words: usize, width: usize| {
        let head = LmHead::new(f32s(&[], [words, width]));
        let states = Tensor::zeros([2, 3, width], (&device(), DType::F32));
        message(states, &head)
    };
    assert_eq!(
        nothing(0, 4),
        "`head.weight`: expected vocab ≥ 1, hidden 4 ≥ 1, found vocab 0, hidden 4"
    );
    assert_eq!(
        nothing(5, 0),
        "`head.weight`: expected vocab ≥ 1, hidden 0 ≥ 1, found vocab 5, hidden 0"
    );
    let short = Tensor::zeros([4], (&device(), DType::F32));
    assert_eq!(
        message(states(), &head.clone().with_bias(short)),
        "`head.bias`: expected shape [5], found shape [4]"
    );
    let wide = Tensor::zeros([5], (&device(), DType::F64));
    assert_eq!(
        message(states(), &head.clone().with_bias(wide)),
        "`head.bias`: expected F32, found F64"
    );
    assert_eq!(
        message(states().narrow(1, 0, 2), &head),
        "`tokens`: expected shape [2, 2], found shape [2, 3]"
    );
    let one = TokenLogProbs::from_output(
        (states().narrow(1, 0, 1), head.clone()),
        problem.tokens().narrow(1, 0, 1),
        problem.mask().narrow(1, 0, 1),
    );
    assert_eq!(
        one.unwrap_err().to_string(),
        "`hidden`: expected time ≥ 2, found shape [2, 1, 4]"
    );
    let mask = problem.mask().narrow(0, 0, 1);
    let short = TokenLogProbs::from_output((states(), head.clone()), problem.tokens(), mask);
    assert_eq!(
        short.unwrap_err().to_string(),
        "`completion_mask`: expected shape [2, 3], found shape [1, 3]"
    );
    let far = LmHead::new(Tensor::zeros([5, 4], (&elsewhere(), DType::F32)));
    let text = message(states(), &far);
    assert!(text.starts_with("`head.weight`: expected "), "{text}");
}

/// The loss of every objective, and its gradients of the model, by both paths.
#[test]
fn every_objective_agrees_on_both_paths() {
    let problem = Problem::new([6, 7, 23, 4], 11);
    let reference = Problem {
        hidden: noise(6 * 7 * 4, 99),
        ..problem.clone()
    };
    let log_probs = |problem: &Problem, from_logits: bool, leaves: &[Tensor<2>; 2]| {
        let [hidden, weight] = leaves.clone();
        let shape = [problem.batch, problem.time];
        let log_probs = if from_logits {
            let logits = hidden.matmul(weight.transpose());
            let logits = logits.reshape([shape[0], shape[1], problem.vocab]);
            TokenLogProbs::from_output(logits, problem.tokens(), problem.mask())
        } else {
            let states = hidden.reshape([shape[0], shape[1], problem.width]);
            let head = LmHead::new(weight);
            TokenLogProbs::from_output((states, head), problem.tokens(), problem.mask())
        };
        log_probs.unwrap().sequence()
    };
    let leaves = |problem: &Problem| {
        let rows = [problem.batch * problem.time, problem.width];
        [
            Problem::floats(&problem.hidden, rows, DType::F64),
            Problem::floats(&problem.weight, [problem.vocab, problem.width], DType::F64),
        ]
    };
    let step = |from_logits: bool, loss: &dyn Fn(Sequences) -> Tensor<1>| {
        let ours = leaves(&problem).map(|leaf| leaf.autodiff().require_grad());
        let theirs = leaves(&reference);
        let loss = loss([
            log_probs(&problem, from_logits, &ours),
            log_probs(&reference, from_logits, &theirs),
        ]);
        let grads = loss.backward();
        let mut numbers = to_vec(loss);
        numbers.extend(
            ours.iter()
                .flat_map(|leaf| to_vec(leaf.grad(&grads).unwrap())),
        );
        numbers
    };
    let compare = |name: &str, loss: &dyn Fn(Sequences) -> Tensor<1>| {
        assert_close(&step(false, loss), &step(true, loss), 1e-11, name);
    };
    for subject in subjects::pairs(0.3) {
        compare(subject.name, &|[ours, theirs]| {
            let pair = |log_probs| PolicyPair::from_concatenated(log_probs).unwrap();
            (subject.forward)(pair(&ours).relative_to(pair(&theirs)).unwrap()).mean()
        });
    }
    for subject in subjects::lists(0.3) {
        compare(subject.name, &|[ours, theirs]| {
            let lists = |log_probs: SequenceLogProbs| log_probs.split_candidates(3).unwrap();
            let relative = lists(ours).relative_to(lists(theirs)).unwrap();
            let scores = Problem::floats(&[3.0, 1.0, 2.0, 0.5, 0.7, 0.1], [2, 3], DType::F64);
            let present = bools(&[true; 6]).reshape([2, 3]);
            (subject.forward)(Ranked::new(relative, scores, present).unwrap()).mean()
        });
    }
    compare("kto", &|[ours, theirs]| {
        let relative = ours.relative_to(theirs).unwrap();
        let batch = Unpaired::new(relative, bools(&[true, false, true, true, false, false]));
        let baseline = Problem::floats(&[0.2], [1], DType::F64);
        let batch = WithBaseline::new(batch.unwrap(), baseline).unwrap();
        KtoLossConfig::new().init().forward(batch).mean()
    });
}

/// Policy and reference.
type Sequences = [SequenceLogProbs; 2];

/// More logits than Burn's own operations take in one block: f64 goes that way on every backend.
#[test]
fn several_blocks_of_rows() {
    let mut problem = Problem::new([2, 220, 40_000, 2], 41);
    problem.mask.fill(true);
    let from_logits = How {
        from_logits: true,
        ..TRAINABLE
    };
    let expected = problem.run(from_logits);
    // No logits kept, or those of the first block of 419 rows.
    for retained_bytes in [0, 419 * 40_000 * 8] {
        let ours = problem.run(How {
            retained_bytes,
            ..TRAINABLE
        });
        assert_close(&ours.log_probs, &expected.log_probs, 1e-12, "log-probs");
        assert_close(&ours.hidden, &expected.hidden, 1e-12, "d hidden");
        assert_close(&ours.weight, &expected.weight, 1e-12, "d weight");
        assert_close(&ours.bias, &expected.bias, 1e-12, "d bias");
    }
    let frozen = problem.run(FROZEN);
    assert_close(&frozen.hidden, &expected.hidden, 1e-12, "d hidden");
}

/// transformers' Gemma 2, Cohere and Granite, TRL's chunked head and cut-cross-entropy's softcap:
/// `scripts/head_goldens.py` wrote the numbers.
#[test]
fn the_heads_of_other_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/heads.json");
    let file: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 10);
    for case in cases {
        let name = case["model"].as_str().unwrap();
        let list = |key: &str| -> Option<Vec<f64>> {
            let values = case.get(key)?.as_array()?.iter();
            Some(values.map(|x| x.as_f64().unwrap()).collect())
        };
        let number = |key: &str| case[key].as_f64();
        let ids = case["tokens"].as_array().unwrap().iter();
        let ids: Vec<i64> = ids
            .flat_map(|row| row.as_array().unwrap())
            .map(|id| id.as_i64().unwrap())
            .collect();
        let tokens = Tensor::<1, Int>::from_data(ids.as_slice(), &device()).reshape([2, 6]);
        let leaf = |key: &str, shape: [usize; 2]| {
            let data = TensorData::new(list(key).unwrap(), shape);
            let leaf = Tensor::<2>::from_data(data, (&device(), DType::F64));
            leaf.autodiff().require_grad()
        };
        let (hidden, weight) = (leaf("hidden", [12, 8]), leaf("weight", [13, 8]));
        let head = LmHead::new(weight.clone())
            .with_logit_scale(number("scale").unwrap())
            .and_then(|head| head.with_temperature(number("temperature").unwrap()))
            .and_then(|head| match number("softcap") {
                Some(cap) => head.with_softcap(cap),
                None => Ok(head),
            })
            .unwrap();
        let states = hidden.clone().reshape([2, 6, 8]);
        let counted = tokens.clone().greater_equal_elem(0);
        let (log_probs, statistics) =
            TokenLogProbs::from_output(WithStatistics((states, head)), tokens, counted).unwrap();
        // Both are f32 inside.
        let tolerance = if name.starts_with("trl") || name.starts_with("cut") {
            3e-6
        } else {
            1e-12
        };
        let check = |key: &str, ours: Vec<f64>| {
            if let Some(expected) = list(key) {
                assert_close(&ours, &expected, tolerance, &format!("{name}: {key}"));
            }
        };
        let columns = log_probs.log_probs();
        check("log_probs", to_vec(columns.clone()));
        let [entropy, collisions, top1, mean_logits] = values(&statistics);
        check("entropy", entropy);
        check("collisions", collisions);
        check("top1", top1);
        check("mean_logits", mean_logits);
        let weights: Vec<f64> = (0..10).map(|i| 1.0 + f64::from(i) / 7.0).collect();
        let weights = Problem::floats(&weights, [2, 5], DType::F64);
        let grads = (columns * weights).sum().backward();
        check("grad_hidden", to_vec(hidden.grad(&grads).unwrap()));
        check("grad_weight", to_vec(weight.grad(&grads).unwrap()));
    }
}
