//! Two small heads over one vocabulary, in plain f64 and in ours.

use burn_preference::log_probs::{Discrepancy, TokenDiscrepancy};

use crate::problem::{How, Layout, Problem, REFERENCE};
use crate::support::{assert_close, to_vec};

/// A policy and a reference over the same tokens; their hidden states differ in width.
#[derive(Debug, Clone)]
pub struct TwoModels {
    pub policy: Problem,
    pub reference: Problem,
}

/// Divergences per column, and gradients of Σ factor·divergence by the policy's parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    pub values: Vec<f64>,
    pub gradients: [Vec<f64>; 3],
}

pub const KINDS: [Discrepancy; 5] = [
    Discrepancy::ForwardKl,
    Discrepancy::ReverseKl,
    Discrepancy::JensenShannon(0.5),
    Discrepancy::JensenShannon(0.1),
    Discrepancy::JensenShannon(0.9),
];

/// ln softmax.
pub fn log_softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = x.iter().map(|x| (x - max).exp()).sum();
    x.iter().map(|x| x - max - sum.ln()).collect()
}

/// Σ a·ln(a/b), from logarithms; 0·ln 0 = 0.
fn kl(a: &[f64], b: &[f64]) -> f64 {
    let term = |(&a, &b): (&f64, &f64)| {
        if a.exp() > 0.0 {
            a.exp() * (a - b)
        } else {
            0.0
        }
    };
    a.iter().zip(b).map(term).sum()
}

/// ln(β·π° + (1 − β)·π)
fn mixture(beta: f64, ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    let pairs = ours.iter().zip(theirs);
    let mixed = pairs.map(|(p, q)| (beta * q.exp() + (1.0 - beta) * p.exp()).ln());
    mixed.collect()
}

/// The divergence of two models, of their logits.
pub fn divergence(kind: Discrepancy, ours: &[f64], theirs: &[f64]) -> f64 {
    let (ours, theirs) = (log_softmax(ours), log_softmax(theirs));
    match kind {
        Discrepancy::ForwardKl => kl(&theirs, &ours),
        Discrepancy::ReverseKl => kl(&ours, &theirs),
        Discrepancy::JensenShannon(beta) => {
            let m = mixture(beta, &ours, &theirs);
            beta * kl(&theirs, &m) + (1.0 - beta) * kl(&ours, &m)
        }
        other => unreachable!("{other:?}"),
    }
}

/// Its gradient by our logits, by the chain rule of the softmax: p·(g − Σ p·g), where g is the
/// derivative by p. `slopes_of_the_scalar_code` compares it with difference quotients.
pub fn slope(kind: Discrepancy, ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    let (ours, theirs) = (log_softmax(ours), log_softmax(theirs));
    let m = match kind {
        Discrepancy::JensenShannon(beta) => mixture(beta, &ours, &theirs),
        _ => vec![0.0; ours.len()],
    };
    // g up to a constant, times p.
    let weighed = |v: usize| match kind {
        Discrepancy::ForwardKl => -theirs[v].exp(),
        Discrepancy::ReverseKl => ours[v].exp() * (ours[v] - theirs[v]),
        Discrepancy::JensenShannon(_) if ours[v].exp() == 0.0 => 0.0,
        Discrepancy::JensenShannon(beta) => (1.0 - beta) * ours[v].exp() * (ours[v] - m[v]),
        other => unreachable!("{other:?}"),
    };
    let weighed: Vec<f64> = (0..ours.len()).map(weighed).collect();
    let sum: f64 = weighed.iter().sum();
    let pairs = weighed.iter().zip(&ours);
    pairs.map(|(g, p)| g - p.exp() * sum).collect()
}

impl TwoModels {
    /// A policy whose hidden states have `width` numbers, and a reference with two more.
    pub fn new([batch, time, vocab, width]: [usize; 4], seed: u64) -> Self {
        let policy = Problem::new([batch, time, vocab, width], seed);
        let reference = Problem::new([batch, time, vocab, width + 2], seed + 1000);
        Self { policy, reference }
    }

    pub fn coarsen(&mut self) {
        self.policy.coarsen();
        self.reference.coarsen();
    }

    /// Plain f64.
    pub fn scalar(&self, kind: Discrepancy) -> Compared {
        let of = &self.policy;
        let mut values = vec![0.0; of.batch * (of.time - 1)];
        let mut hidden = vec![0.0; of.hidden.len()];
        let mut weight = vec![0.0; of.weight.len()];
        let mut bias = vec![0.0; of.vocab];
        for b in 0..of.batch {
            for t in 0..of.time - 1 {
                let (row, column) = (b * of.time + t, b * (of.time - 1) + t);
                if !of.mask[row + 1] {
                    continue;
                }
                let (ours, shaped): (Vec<f64>, Vec<f64>) = of.logits(row).into_iter().unzip();
                let (theirs, _): (Vec<f64>, Vec<f64>) =
                    self.reference.logits(row).into_iter().unzip();
                values[column] = divergence(kind, &ours, &theirs);
                let slopes = slope(kind, &ours, &theirs);
                for v in 0..of.vocab {
                    let delta = Problem::factor(column) * slopes[v] * shaped[v];
                    bias[v] += delta;
                    for k in 0..of.width {
                        let (h, w) = (row * of.width + k, v * of.width + k);
                        hidden[h] += delta * of.weight[w];
                        weight[w] += delta * of.hidden[h];
                    }
                }
            }
        }
        Compared {
            values,
            gradients: [hidden, weight, bias],
        }
    }

    /// Ours, with the gradients of Σ factor·divergence.
    pub fn run(&self, kind: Discrepancy, how: How) -> Compared {
        self.run_weighted(kind, how, Problem::factor)
    }

    /// Ours, with the gradients of Σ weight·divergence. The reference has the words in another
    /// layout than the policy.
    pub fn run_weighted(
        &self,
        kind: Discrepancy,
        how: How,
        weight: impl Fn(usize) -> f64,
    ) -> Compared {
        let layout = match how.layout {
            Layout::WordsFirst => Layout::Transposed,
            Layout::View => Layout::WordsFirst,
            Layout::Transposed => Layout::View,
        };
        let dtype = how.dtype;
        let reference = How {
            dtype,
            layout,
            ..REFERENCE
        };
        let policy = self.policy.tensors(how);
        let reference = self.reference.tensors(reference).output;
        let ours = policy.output.clone();
        let mask = self.policy.mask();
        let found = if how.from_logits {
            let [ours, theirs] = [ours, reference].map(|(h, head)| head.logits(h).unwrap());
            TokenDiscrepancy::from_outputs(kind, ours, theirs, mask)
        } else {
            TokenDiscrepancy::from_outputs(kind, ours, reference, mask)
        };
        let columns = found.unwrap().values();
        Compared {
            gradients: policy.gradients(how, &columns, weight),
            values: to_vec(columns),
        }
    }

    #[track_caller]
    pub fn check(&self, kind: Discrepancy, how: How, tolerance: f64) {
        self.check_against(&self.scalar(kind), kind, how, tolerance);
    }

    #[track_caller]
    pub fn check_against(&self, expected: &Compared, kind: Discrepancy, how: How, tolerance: f64) {
        let ours = self.run(kind, how);
        let what = |name: &str| format!("{name} of {kind:?}, {how:?}");
        assert_close(&ours.values, &expected.values, tolerance, &what("values"));
        let wanted = [
            how.hidden,
            how.weight,
            how.weight && self.policy.bias.is_some(),
        ];
        let names = ["d hidden", "d weight", "d bias"];
        for (part, name) in names.into_iter().enumerate() {
            let expected = if wanted[part] {
                &expected.gradients[part][..]
            } else {
                &[]
            };
            assert_close(&ours.gradients[part], expected, tolerance, &what(name));
        }
    }
}
