//! What `docs/guide/questions.md` answers and no other test shows; and that the tests it names
//! exist.

use std::fs;
use std::path::Path;

use burn::nn::{Initializer, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Bool, DType, Device, Int, Tensor};
use burn_preference::{
    BatchMetrics, DpoLossConfig, LmHead, Objective, PolicyPair, ReferencedPair, SftTerm,
    TokenLogProbs,
};

use crate::support::{device, leaf, sequence, to_vec};

/// A model of three words: logits are products of each word's two numbers with `state`.
const WORDS: [[f64; 2]; 3] = [[1.0, 1.0], [0.0, 1.0], [3.0, 0.0]];

/// Log-probabilities of the words, `[3]`.
fn says(state: Tensor<1>) -> Tensor<1> {
    let words = Tensor::<2>::from_data(WORDS, (&device(), DType::F64));
    let logits = words.matmul(state.unsqueeze_dim(1)).squeeze_dim(1);
    log_softmax(logits, 0)
}

/// The first word is chosen, the second rejected; the reference is the start.
fn pair(log_probs: &Tensor<1>) -> ReferencedPair {
    let side =
        |log_probs: &Tensor<1>, word: usize| sequence(log_probs.clone().narrow(0, word, 1), &[1]);
    let of = |y: &Tensor<1>| PolicyPair::new(side(y, 0), side(y, 1)).unwrap();
    let start = says(leaf(&[0.0, 0.0])).without_autodiff();
    of(log_probs).relative_to(of(&start)).unwrap()
}

/// Log-probabilities of the words after one step of gradient descent, minus those before; and what
/// the metrics then say of the chosen one.
fn after_a_step(objective: &impl Objective<ReferencedPair>) -> ([f64; 3], f64) {
    let state = leaf(&[0.0, 0.0]);
    let before = says(state.clone());
    let grads = objective.forward(pair(&before)).mean().backward();
    let state = state.clone().inner() - state.grad(&grads).unwrap();
    let after = says(state);
    let batch = pair(&after);
    let metrics = BatchMetrics::observe(&batch, &objective.forward(batch.clone()));
    let displacement = metrics.read().unwrap().get("displacement").unwrap();
    let moved = to_vec(after - before.without_autodiff());
    (moved.try_into().unwrap(), displacement)
}

#[test]
fn chosen_log_probs_fall_with_the_loss() {
    let close = |found: f64, expected: f64| {
        assert!((found - expected).abs() < 1e-6, "{found}, not {expected}");
    };
    // DPO's gradient is −β/2·(w_chosen − w_rejected), so that the state becomes (0.05, 0) and
    // logits (0.05, 0, 0.15): the third word, which nobody has labelled, takes it all.
    let dpo = DpoLossConfig::new().with_beta(0.1).init();
    let normaliser = (0.05_f64.exp() + 1.0 + 0.15_f64.exp()).ln() - 3_f64.ln();
    let (moved, displacement) = after_a_step(&dpo);
    close(moved[0], 0.05 - normaliser); // −0.018626
    close(moved[1], -normaliser);
    close(moved[2], 0.15 - normaliser);
    assert!(moved[0] < -0.018 && moved[0] > moved[1] && moved[2] > 0.08);
    close(displacement, 1.0);

    // With an NLL the state becomes (0.05 − 0.1/3, 0.1/3), logits (0.05, 0.1/3, 0.05).
    let (moved, displacement) = after_a_step(&SftTerm::new(dpo, 0.1).unwrap());
    let normaliser = (2.0 * 0.05_f64.exp() + (0.1_f64 / 3.0).exp()).ln() - 3_f64.ln();
    close(moved[0], 0.05 - normaliser); // +0.005525
    close(moved[1], 0.1 / 3.0 - normaliser);
    assert!(moved[0] > 0.005 && moved[1] < 0.0);
    close(displacement, 0.0);
}

/// 512 GiB of logits, of which four rows count.
#[test]
fn logits_that_no_machine_holds_are_never_made() {
    let (time, words, counted) = (1 << 20, 1 << 17, 4);
    let device: Device = device();
    let hidden = Tensor::<3>::ones([1, time, 2], &device)
        .autodiff()
        .require_grad();
    // All words are equally likely.
    let weight = Tensor::<2>::zeros([words, 2], &device)
        .autodiff()
        .require_grad();
    let ids = Tensor::<2, Int>::zeros([1, time], &device);
    let place = Tensor::<1, Int>::arange(0..i64::from(time), &device).unsqueeze::<2>();
    let mask: Tensor<2, Bool> = place.greater_equal_elem(i64::from(time - counted));
    let head = LmHead::new(weight.clone());
    let log_probs = TokenLogProbs::from_output((hidden, head), ids, mask).unwrap();
    let sum = log_probs.sequence().sum();
    let expected = -4.0 * 17.0 * std::f64::consts::LN_2;
    assert!((to_vec(sum.clone())[0] - expected).abs() < 1e-4);
    // Word 0 four times: 4·(1 − 1/words) for it.
    let grads = sum.sum().backward();
    let grad = weight.grad(&grads).unwrap().narrow(0, 0, 1);
    assert!((to_vec(grad)[0] - 4.0).abs() < 1e-3);
}

/// And with Burn's default of 1e-5 it does not: 1e-6 / (1e-6 + ε).
#[test]
fn a_small_gradient_moves_a_weight_by_the_rate() {
    let moved = |config: AdamWConfig| {
        let device = device().autodiff();
        let linear = LinearConfig::new(1, 1).with_initializer(Initializer::Zeros);
        let model = linear.init(&device);
        let grads = (model.weight.val() * 1e-6).sum().backward();
        let grads = GradientsParams::from_grads(grads, &model);
        let model = config.init().step(1e-3, model, grads);
        -to_vec(model.weight.val().reshape([1]))[0] / 1e-3
    };
    let as_torch = moved(AdamWConfig::new().with_epsilon(1e-8));
    assert!((as_torch - 1.0).abs() < 0.01, "{as_torch}");
    let by_default = moved(AdamWConfig::new());
    assert!((by_default - 1.0 / 11.0).abs() < 1e-3, "{by_default}");
}

/// Names of tests stand in lines that begin with "Shown by": functions, then their file.
#[test]
fn the_tests_that_the_guide_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| {
        let path = root.join(path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let questions = read("docs/guide/questions.md");
    let asked = questions
        .lines()
        .filter(|line| line.starts_with("# "))
        .count();
    let answers: Vec<&str> = questions
        .lines()
        .filter(|line| line.starts_with("Shown by"))
        .collect();
    assert_eq!(answers.len(), asked, "a test for every question");
    for answer in answers {
        let mut names = Vec::new();
        let mut files = 0;
        for word in answer.split('`').skip(1).step_by(2) {
            if Path::new(word)
                .extension()
                .is_some_and(|extension| extension == "rs")
            {
                let source = read(word);
                assert!(!names.is_empty(), "{answer}");
                for name in names.drain(..) {
                    let test = format!("fn {name}(");
                    assert!(source.contains(&test), "{word} has no test `{name}`");
                }
                files += 1;
            } else {
                names.push(word);
            }
        }
        assert!(files > 0 && names.is_empty(), "{answer}");
    }
}
