//! Parts of a step: the gradient and the metrics of one large batch.

use burn::data::dataloader::batcher::Batcher;
use burn::optim::GradientsParams;
use burn_preference::data::{Collator, Example, PairTokens};
use burn_preference::tokens::Padding;
use burn_preference::training::accumulation::Accumulation;
use burn_preference::training::gradients::clip_by_global_norm;
use burn_preference::{BatchMetrics, DpoLossConfig, Error, Frozen, Objective, ReferencedPair};

use crate::support::bigram::Bigram;
use crate::support::{assert_close, device, to_vec};

struct Step {
    policy: Bigram,
    reference: Frozen<Bigram>,
}

impl Step {
    fn new() -> Self {
        let of = |seed| Bigram::new([9, 4], seed, &device().autodiff());
        Self {
            policy: of(0),
            reference: Frozen::new(&of(1)),
        }
    }

    /// Pairs `from..to` of a data set.
    fn pairs(&self, from: u32, to: u32) -> ReferencedPair {
        let pair = |i: u32| Example::pair(vec![i % 9], vec![(i + 1) % 9, 8], vec![(i + 2) % 9; 3]);
        let batch: PairTokens =
            Collator::new(Padding::new(0)).batch((from..to).map(pair).collect(), &device());
        let ours = batch.rows.log_probs(&self.policy, Bigram::hidden).unwrap();
        let theirs = batch.rows.reference(&self.reference, Bigram::hidden);
        batch
            .pair(ours.relative_to(theirs.unwrap()).unwrap())
            .unwrap()
    }

    /// The gradient, clipped to 0.01, and the metrics of these parts of 8 pairs.
    fn of(&self, parts: &[[u32; 2]]) -> Result<(Vec<f64>, Vec<(String, f64)>), Error> {
        let dpo = DpoLossConfig::new().init();
        let mut step = Accumulation::over(8.0)?;
        for &[from, to] in parts {
            let pairs = self.pairs(from, to);
            step.add(&self.policy, &pairs, dpo.forward(pairs.clone()))?;
        }
        let (grads, metrics) = step.clipped(&self.policy, 0.01)?;
        Ok((self.numbers(&grads), entries(metrics)))
    }

    fn numbers(&self, grads: &GradientsParams) -> Vec<f64> {
        let Bigram {
            embedding, head, ..
        } = &self.policy;
        let bias = head.bias.as_ref().unwrap();
        let weights = [&embedding.weight, &head.weight].map(|weight| weight.id);
        let matrices = weights.map(|id| to_vec(grads.get::<2>(id).unwrap()));
        [matrices.concat(), to_vec(grads.get::<1>(bias.id).unwrap())].concat()
    }
}

fn entries(metrics: BatchMetrics) -> Vec<(String, f64)> {
    let metrics = metrics.read().unwrap();
    let entry = |key: &str| (key.to_owned(), metrics.get(key).unwrap());
    ["loss", "rewards/margins", "logps/chosen", "grad_norm"]
        .map(entry)
        .to_vec()
}

#[test]
fn unequal_parts_are_one_large_batch() {
    let step = Step::new();
    let whole = step.pairs(0, 8);
    let output = DpoLossConfig::new().init().forward(whole.clone());
    let grads = GradientsParams::from_grads(output.mean().backward(), &step.policy);
    let (grads, norm) = clip_by_global_norm(grads, &step.policy, 0.01).unwrap();
    let metrics = BatchMetrics::observe(&whole, &output).with("grad_norm", norm);
    let expected = (step.numbers(&grads), entries(metrics));
    assert!(expected.1[3].1 > 0.02, "it is clipped");
    for parts in [
        &[[0, 8]][..],
        &[[0, 4], [4, 8]],
        &[[0, 1], [1, 7], [7, 8]],
        // A worker whose share is empty for once.
        &[[0, 5], [5, 5], [5, 8]],
    ] {
        let (grads, metrics) = step.of(parts).unwrap();
        assert_close(&grads, &expected.0, 1e-6, "gradients");
        for ((key, ours), (_, theirs)) in metrics.iter().zip(&expected.1) {
            assert!((ours - theirs).abs() < 1e-5, "{key}: {ours}, not {theirs}");
        }
    }
    // Half of the step, as one of two workers has it: half of the sum.
    let halves = [[0, 4], [4, 8]].map(|half| step.of(&[half]).unwrap().1[0].1);
    assert!((f64::midpoint(halves[0], halves[1]) - expected.1[0].1).abs() < 1e-5);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let step = Step::new();
    let error = step.of(&[[0, 5], [4, 8]]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`examples`: expected 8 at most, the total, found 9"
    );
    for total in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = Accumulation::<Bigram>::over(total).unwrap_err();
        assert_eq!(error.name(), "total");
    }
    let nothing = Accumulation::over(1.0).unwrap();
    assert!(format!("{nothing:?}").starts_with("Accumulation { total: 1.0, seen: 0"));
    let error = nothing.clipped(&step.policy, 0.0).unwrap_err();
    assert_eq!(error.name(), "max_norm");
}
