//! What every test needs: tensors in f64 on the test device, and numbers back from them.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod bigram;
pub mod damage;
pub mod device;
pub mod fuzz;
pub mod llama;
pub mod steps;

#[allow(unused_imports, reason = "each test binary uses its own part")]
pub use device::{device, dtypes, elsewhere, keeps_nan, tolerance, wide_dtypes};

use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use burn_preference::log_probs::WithStatistics;
use burn_preference::{
    LmHead, LossOutput, Objective, Pair, PolicyPair, Ranked, ReferencedPair, RelativeLogProbs,
    SequenceLogProbs, TokenLogProbs, TokenStatistics, Unpaired, WithBaseline, batch::Rewards,
};
use proptest::prelude::ProptestConfig;

/// So many cases of a property, unless `PROPTEST_CASES` asks for another number.
pub fn cases(usual: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig::with_cases(asked.map_or(usual, |asked| asked.parse().unwrap()))
}

/// Two lists side by side.
pub trait ZipEqual: ExactSizeIterator + Sized {
    /// As `zip`; panics if one list is longer, which `zip` would not compare to its end.
    fn zip_equal<O>(self, other: O) -> std::iter::Zip<Self, O::IntoIter>
    where
        O: IntoIterator<IntoIter: ExactSizeIterator>,
    {
        let other = other.into_iter();
        assert_eq!(self.len(), other.len(), "lists of different lengths");
        self.zip(other)
    }
}

impl<I: ExactSizeIterator> ZipEqual for I {}

pub fn f64s(values: &[f64]) -> Tensor<1> {
    floats(values, DType::F64)
}

pub fn floats(values: &[f64], dtype: DType) -> Tensor<1> {
    Tensor::from_data(TensorData::from(values), (&device(), dtype))
}

/// A leaf whose gradient can be asked for.
pub fn leaf(values: &[f64]) -> Tensor<1> {
    f64s(values).autodiff().require_grad()
}

pub fn ints(values: &[usize]) -> Tensor<1, Int> {
    let values: Vec<i32> = values.iter().map(|&v| i32::try_from(v).unwrap()).collect();
    Tensor::from_data(TensorData::from(values.as_slice()), &device())
}

pub fn bools(values: &[bool]) -> Tensor<1, Bool> {
    Tensor::from_data(TensorData::from(values), &device())
}

pub fn to_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// Whether `BURN_PREFERENCE_PATH=hidden` asks for log-probs from hidden states and a head instead
/// of logits.
pub fn by_hidden() -> bool {
    match std::env::var("BURN_PREFERENCE_PATH").as_deref() {
        Err(_) | Ok("logits") => false,
        Ok("hidden") => true,
        Ok(other) => panic!("BURN_PREFERENCE_PATH={other}: logits or hidden"),
    }
}

/// Log-probs of logits, and what else they say; as hidden states they pass a head that changes
/// nothing.
pub fn token_log_probs(
    logits: Tensor<3>,
    tokens: Tensor<2, Int>,
    mask: Tensor<2, Bool>,
) -> (TokenLogProbs, TokenStatistics) {
    // A product of infinities with the zeros of the identity is NaN.
    if by_hidden() && logits.clone().is_finite().all().into_scalar::<bool>() {
        let [_, _, vocab] = logits.dims();
        let identity = Tensor::<2>::eye(vocab, &logits.device()).cast(logits.dtype());
        let head = LmHead::new(identity);
        TokenLogProbs::from_output(WithStatistics((logits, head)), tokens, mask).unwrap()
    } else {
        TokenLogProbs::from_output(WithStatistics(logits), tokens, mask).unwrap()
    }
}

pub fn sequence(sum: Tensor<1>, lengths: &[usize]) -> SequenceLogProbs {
    SequenceLogProbs::new(sum, lengths).unwrap()
}

/// Numbers of tokens.
pub fn counts(lengths: Tensor<1>) -> Vec<usize> {
    let lengths = lengths.int().into_data();
    let count = |length| usize::try_from(length).unwrap();
    lengths.iter::<i64>().map(count).collect()
}

/// Other sums of the same completions.
pub fn with_sum(y: &SequenceLogProbs, sum: Tensor<1>) -> SequenceLogProbs {
    sequence(sum, &counts(y.lengths()))
}

/// Plain numbers of a batch of pairs.
#[derive(Debug, Clone, Default)]
pub struct Pairs {
    pub chosen: Vec<f64>,
    pub rejected: Vec<f64>,
    pub ref_chosen: Vec<f64>,
    pub ref_rejected: Vec<f64>,
    pub chosen_len: Vec<usize>,
    pub rejected_len: Vec<usize>,
}

/// What an objective says of a batch: losses, rewards, and d Σ losses / d log-probs.
#[derive(Debug, Clone, PartialEq)]
pub struct PairResult {
    pub losses: Vec<f64>,
    pub rewards: Pair<Vec<f64>>,
    pub grads: Pair<Vec<f64>>,
}

impl Pairs {
    pub fn len(&self) -> usize {
        self.chosen.len()
    }

    pub fn map(&self, f: impl Fn(&[f64]) -> Vec<f64>, g: impl Fn(&[usize]) -> Vec<usize>) -> Self {
        Self {
            chosen: f(&self.chosen),
            rejected: f(&self.rejected),
            ref_chosen: f(&self.ref_chosen),
            ref_rejected: f(&self.ref_rejected),
            chosen_len: g(&self.chosen_len),
            rejected_len: g(&self.rejected_len),
        }
    }

    pub fn policy(&self, chosen: Tensor<1>, rejected: Tensor<1>) -> PolicyPair {
        PolicyPair::new(
            sequence(chosen, &self.chosen_len),
            sequence(rejected, &self.rejected_len),
        )
        .unwrap()
    }

    pub fn referenced(&self, chosen: Tensor<1>, rejected: Tensor<1>) -> ReferencedPair {
        let dtype = chosen.dtype();
        let reference = self.policy(
            floats(&self.ref_chosen, dtype),
            floats(&self.ref_rejected, dtype),
        );
        self.policy(chosen, rejected)
            .relative_to(reference)
            .unwrap()
    }

    pub fn run(&self, objective: &dyn Objective<ReferencedPair>, dtype: DType) -> PairResult {
        self.run_on(dtype, |w, l| objective.forward(self.referenced(w, l)))
    }

    pub fn run_policy(&self, objective: &dyn Objective<PolicyPair>, dtype: DType) -> PairResult {
        self.run_on(dtype, |w, l| objective.forward(self.policy(w, l)))
    }

    pub fn run_on(
        &self,
        dtype: DType,
        forward: impl FnOnce(Tensor<1>, Tensor<1>) -> LossOutput<Pair<Tensor<1>>>,
    ) -> PairResult {
        let chosen = floats(&self.chosen, dtype).autodiff().require_grad();
        let rejected = floats(&self.rejected, dtype).autodiff().require_grad();
        let output = forward(chosen.clone(), rejected.clone());
        let grads = output.sum().backward();
        let grad = |x: Tensor<1>| to_vec(x.grad(&grads).unwrap_or_else(|| x.zeros_like().inner()));
        PairResult {
            losses: to_vec(output.losses()),
            rewards: output.rewards().clone().map(to_vec),
            grads: Pair::new(chosen, rejected).unwrap().map(grad),
        }
    }
}

/// Plain numbers of a batch of unpaired completions, and KTO's reference point.
#[derive(Debug, Clone)]
pub struct UnpairedCompletions {
    pub policy: Vec<f64>,
    pub reference: Vec<f64>,
    pub desirable: Vec<bool>,
    pub baseline: f64,
}

type KtoBatch = WithBaseline<Unpaired<RelativeLogProbs>>;

impl UnpairedCompletions {
    pub fn batch(&self, policy: Tensor<1>) -> KtoBatch {
        let lengths = vec![5; self.policy.len()];
        let dtype = policy.dtype();
        let relative = sequence(policy, &lengths)
            .relative_to(sequence(floats(&self.reference, dtype), &lengths))
            .unwrap();
        let batch = Unpaired::new(relative, bools(&self.desirable)).unwrap();
        WithBaseline::new(batch, floats(&[self.baseline], dtype)).unwrap()
    }

    /// Losses, rewards and d Σ losses / d policy log-probs.
    pub fn run(
        &self,
        objective: &dyn Objective<KtoBatch>,
        dtype: DType,
    ) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let policy = floats(&self.policy, dtype).autodiff().require_grad();
        values_and_grad(objective.forward(self.batch(policy.clone())), &policy)
    }
}

/// Plain numbers of one list of candidates per prompt.
#[derive(Debug, Clone)]
pub struct Lists {
    pub candidates: usize,
    pub sums: Vec<f64>,
    /// Of the reference; empty where there is none.
    pub references: Vec<f64>,
    pub lengths: Vec<usize>,
    pub scores: Vec<f64>,
    pub present: Vec<bool>,
}

/// Sum, sum of the reference, length and score of a candidate, and whether there is one.
pub type Candidate = (f64, f64, usize, f64, bool);

impl Lists {
    /// One list of these candidates.
    pub fn of_one(candidates: &[Candidate]) -> Self {
        Self {
            candidates: candidates.len(),
            sums: candidates.iter().map(|c| c.0).collect(),
            references: candidates.iter().map(|c| c.1).collect(),
            lengths: candidates.iter().map(|c| c.2).collect(),
            scores: candidates.iter().map(|c| c.3).collect(),
            present: candidates.iter().map(|c| c.4).collect(),
        }
    }

    pub fn batch(&self, sums: Tensor<1>) -> Ranked<SequenceLogProbs<2>> {
        let shape = [self.scores.len() / self.candidates, self.candidates];
        let dtype = sums.dtype();
        Ranked::new(
            sequence(sums, &self.lengths)
                .split_candidates(self.candidates)
                .unwrap(),
            floats(&self.scores, dtype).reshape(shape),
            bools(&self.present).reshape(shape),
        )
        .unwrap()
    }

    /// Losses, rewards and d Σ losses / d sums.
    pub fn run(
        &self,
        objective: &dyn Objective<Ranked<SequenceLogProbs<2>>>,
        dtype: DType,
    ) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let sums = floats(&self.sums, dtype).autodiff().require_grad();
        values_and_grad(objective.forward(self.batch(sums.clone())), &sums)
    }
}

impl Lists {
    pub fn referenced(&self, sums: Tensor<1>) -> Ranked<RelativeLogProbs<2>> {
        let policy = self.batch(sums.clone());
        let references = sequence(floats(&self.references, sums.dtype()), &self.lengths);
        let references = references.split_candidates(self.candidates).unwrap();
        let relative = policy.candidates().clone().relative_to(references).unwrap();
        Ranked::new(relative, policy.scores(), policy.present()).unwrap()
    }

    /// Losses, rewards and d Σ losses / d sums, against a reference.
    pub fn run_on(
        &self,
        dtype: DType,
        forward: impl Fn(Ranked<RelativeLogProbs<2>>) -> LossOutput<Tensor<2>>,
    ) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let sums = floats(&self.sums, dtype).autodiff().require_grad();
        values_and_grad(forward(self.referenced(sums.clone())), &sums)
    }
}

fn values_and_grad<const D: usize>(
    output: LossOutput<Tensor<D>>,
    leaf: &Tensor<1>,
) -> (Vec<f64>, Vec<f64>, Vec<f64>)
where
    Tensor<D>: Rewards,
{
    let grads = output.sum().backward();
    let grad = leaf
        .grad(&grads)
        .unwrap_or_else(|| leaf.zeros_like().inner());
    (
        to_vec(output.losses()),
        to_vec(output.rewards().clone()),
        to_vec(grad),
    )
}

/// min(absolute, relative) difference.
pub fn error(ours: f64, expected: f64) -> f64 {
    if ours == expected || (ours.is_nan() && expected.is_nan()) {
        return 0.0;
    }
    let absolute = (ours - expected).abs();
    absolute.min(absolute / expected.abs())
}

/// Asserts that two lists agree to `tolerance`, absolute or relative.
#[track_caller]
pub fn assert_close(ours: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(ours.len(), expected.len(), "{what}: length");
    for (i, (&a, &b)) in ours.iter().zip_equal(expected).enumerate() {
        let e = error(a, b);
        assert!(
            e <= tolerance,
            "{what}[{i}]: {a} instead of {b} (error {e:e})"
        );
    }
}
