//! The same seed gives the same bits on Flex, on any number of threads.

use burn::module::{Module, Param};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_preference::{
    DpoLossConfig, Frozen, LmHead, Objective, OrpoLossConfig, PolicyPair, Ranked, RrhfLossConfig,
    SequenceLogProbs, TokenLogProbs,
};

use crate::problem::{Problem, noise};
use crate::subjects;
use crate::support::{bools, device, floats, ints, sequence, to_vec};

/// Runs on pools of 1, 2 and 4 threads, and on one of them twice.
fn same_bits(what: &str, run: impl Fn() -> Vec<f64> + Sync) {
    if device() != Device::flex() {
        return; // Elsewhere it is the backend's business.
    }
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(&run)
    };
    let bits = |numbers: Vec<f64>| -> Vec<u64> { numbers.into_iter().map(f64::to_bits).collect() };
    let one = bits(on(1));
    for threads in [2, 2, 4] {
        assert_eq!(bits(on(threads)), one, "{what} on {threads} threads");
    }
}

/// Every objective from hidden states: losses, and gradients of hidden states and head. Those that
/// sort among them.
#[test]
fn objectives_over_the_head() {
    let problem = Problem::new([12, 60, 2300, 8], 31);
    let other = Problem::new([12, 60, 2300, 8], 32);
    let rows = [problem.batch * problem.time, problem.width];
    let leaves = |problem: &Problem| {
        let hidden = Problem::floats(&problem.hidden, rows, DType::F32);
        let weight = [problem.vocab, problem.width];
        [hidden, Problem::floats(&problem.weight, weight, DType::F32)]
    };
    let log_probs = |[hidden, weight]: [Tensor<2>; 2]| -> SequenceLogProbs {
        let states = hidden.reshape([problem.batch, problem.time, problem.width]);
        let head = LmHead::new(weight);
        TokenLogProbs::from_output((states, head), problem.tokens(), problem.mask())
            .unwrap()
            .sequence()
    };
    let step = |loss: &dyn Fn(SequenceLogProbs, SequenceLogProbs) -> Tensor<1>| {
        let ours = leaves(&problem).map(|leaf| leaf.autodiff().require_grad());
        let loss = loss(log_probs(ours.clone()), log_probs(leaves(&other)));
        let grads = loss.backward();
        let gradients = ours
            .iter()
            .flat_map(|leaf| to_vec(leaf.grad(&grads).unwrap()));
        to_vec(loss)
            .into_iter()
            .chain(gradients)
            .collect::<Vec<_>>()
    };
    same_bits("pairs", || {
        // Two of each: `aot` sorts, the others depend on their batch or on lengths.
        ["aot", "beta-dpo", "orpo", "ipo"]
            .into_iter()
            .flat_map(|name| {
                let all = subjects::pairs(0.25).into_iter();
                all.filter(move |subject| subject.name == name).take(2)
            })
            .flat_map(|subject| {
                let pair = |y: &SequenceLogProbs| PolicyPair::from_concatenated(y).unwrap();
                step(&|ours, theirs| {
                    let batch = pair(&ours).relative_to(pair(&theirs)).unwrap();
                    (subject.forward)(batch).mean()
                })
            })
            .collect()
    });
    same_bits("lists", || {
        let all = subjects::lists(0.25).into_iter();
        all.flat_map(|subject| {
            let lists = |y: SequenceLogProbs| y.split_candidates(4).unwrap();
            step(&|ours, theirs| {
                let scores: Vec<f64> = (0..12).map(|i| f64::from(i * 5 % 7)).collect();
                let batch = Ranked::new(
                    lists(ours).relative_to(lists(theirs)).unwrap(),
                    floats(&scores, DType::F32).reshape([3, 4]),
                    bools(&[true; 12]).reshape([3, 4]),
                );
                (subject.forward)(batch.unwrap()).mean()
            })
        })
        .collect()
    });
}

/// A batch that is reduced in one go.
#[test]
fn long_batches() {
    let count = 300_000;
    let sides: Vec<Vec<f64>> = (0..2).map(|i| noise(count, i)).collect();
    let lengths = vec![3; count];
    same_bits("a batch of 300 000", || {
        let leaf = floats(&sides[0], DType::F32).autodiff().require_grad();
        let y = |sum| sequence(sum, &lengths);
        let pair = PolicyPair::new(y(leaf.clone()), y(floats(&sides[1], DType::F32))).unwrap();
        let output = DpoLossConfig::new()
            .init()
            .forward(pair.with_uniform_reference());
        let reduced = [output.mean(), output.robust_mean(1.0).unwrap()];
        let grads = reduced[0].clone().backward();
        let mut numbers: Vec<f64> = reduced.into_iter().flat_map(to_vec).collect();
        numbers.extend(to_vec(leaf.grad(&grads).unwrap()));
        numbers
    });
}

#[derive(Module, Debug)]
struct Model {
    embedding: Param<Tensor<2>>,
    mix: Param<Tensor<2>>,
    head: Param<Tensor<2>>,
}

const VOCAB: usize = 700;
const WIDTH: usize = 96;

impl Model {
    /// Not from the device's random numbers, which other tests draw as well.
    fn new(device: &Device) -> Self {
        let param = |rows: usize, seed: u64| {
            let values = TensorData::new(noise(rows * WIDTH, seed), [rows, WIDTH]);
            Param::from_tensor(Tensor::from_data(values, (device, DType::F32)))
        };
        Self {
            embedding: param(VOCAB, 1),
            mix: param(WIDTH, 2),
            head: param(VOCAB, 3),
        }
    }

    fn hidden(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [batch, time] = tokens.dims();
        let rows = tokens.reshape([batch * time]);
        let embedded = self.embedding.val().select(0, rows);
        let mixed = embedded.clone().matmul(self.mix.val()).tanh();
        (embedded + mixed).reshape([batch, time, WIDTH])
    }

    fn head(&self) -> LmHead {
        LmHead::new(self.head.val())
    }
}

/// AdamW over pairs and lists, by both paths: losses and parameters of a training run.
#[test]
fn training() {
    same_bits("training", || {
        let device = Device::flex();
        let mut policy = Model::new(&device.clone().autodiff());
        let reference = Frozen::new(&policy);
        let mut optimizer = AdamWConfig::new().init();
        let mut numbers = Vec::new();
        for step in 0..3 {
            let draws = noise(400, 10 + step as u64);
            let ids: Vec<usize> = (0..400).map(|i| (i * 7919 + step) % VOCAB).collect();
            let counted: Vec<bool> = draws.iter().map(|x| x.abs() > 0.2).collect();
            let tokens = ints(&ids).reshape([8, 50]);
            let mask = bools(&counted).reshape([8, 50]);
            let hidden = policy.hidden(tokens.clone());
            let ours = if step == 1 {
                let weight = policy.head.val().transpose().unsqueeze();
                TokenLogProbs::from_output(hidden.matmul(weight), tokens.clone(), mask.clone())
            } else {
                TokenLogProbs::from_output((hidden, policy.head()), tokens.clone(), mask.clone())
            };
            let ours = ours.unwrap().sequence();
            let (states, head) = (
                reference.model().hidden(tokens.clone()),
                reference.model().head(),
            );
            let theirs = TokenLogProbs::from_output((states, head.clone()), tokens, mask).unwrap();
            let pair = PolicyPair::from_concatenated(&ours).unwrap();
            let theirs = PolicyPair::from_concatenated(&theirs.sequence()).unwrap();
            let lists = ours.split_candidates(4).unwrap();
            let scores = floats(&draws[..8], DType::F32).reshape([2, 4]);
            let ranked = Ranked::new(lists, scores, bools(&[true; 8]).reshape([2, 4])).unwrap();
            let dpo = DpoLossConfig::new().init();
            let loss = OrpoLossConfig::new().init().forward(pair.clone()).mean()
                + RrhfLossConfig::new().init().forward(ranked).mean()
                + dpo.forward(pair.relative_to(theirs).unwrap()).mean();
            numbers.extend(to_vec(loss.clone()));
            let grads = GradientsParams::from_grads(loss.backward(), &policy);
            policy = optimizer.step(1e-2, policy, grads);
        }
        for param in [policy.embedding, policy.mix, policy.head] {
            numbers.extend(to_vec(param.val()));
        }
        assert!(numbers.iter().all(|x| x.is_finite()));
        numbers
    });
}
