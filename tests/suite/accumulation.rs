//! Parts of a step: the gradient and the metrics of one large batch. And the figure of what other
//! means give, which the guide shows:
//!
//! ```text
//! UPDATE_DOCS=1 cargo test --workspace --test suite accumulation
//! ```

use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;
use std::thread;
use std::time::Duration;

use burn::data::dataloader::batcher::Batcher;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn_preference::data::{Collator, Example, PairTokens};
use burn_preference::tokens::Padding;
use burn_preference::training::accumulation::{Accumulation, StepPart};
use burn_preference::training::gradients::clip_by_global_norm;
use burn_preference::training::metrics::Observe;
use burn_preference::training::reducer::{Reducer, Threads};
use burn_preference::{
    Batch, BatchMetrics, CpoLossConfig, DpoLossConfig, Error, Frozen, NllNormalization, Objective,
    OrpoLossConfig, PolicyPair, ReferencedPair, SequenceLogProbs, SftTerm, SimpoLossConfig,
    TpoLossConfig, WithNll, WithStepTokens,
};

use crate::support::bigram::Bigram;
use crate::support::{ZipEqual, assert_close, device, f64s, leaf, sequence, to_vec};

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
        self.pairs_of(&self.policy, from, to)
    }

    /// The same, with another policy than that of the step.
    fn pairs_of(&self, policy: &Bigram, from: u32, to: u32) -> ReferencedPair {
        // Completions of 2 to 12 and of 3 to 7 tokens.
        let chosen = |i: u32| (0..=1 + i * 7 % 11).map(|t| (i + t * t + 1) % 9).collect();
        let rejected = |i: u32| vec![(i + 2) % 9; 3 + i as usize % 5];
        let pair = |i: u32| Example::pair(vec![i % 9], chosen(i), rejected(i));
        let batch: PairTokens =
            Collator::new(Padding::new(0)).batch((from..to).map(pair).collect(), &device());
        let ours = batch.tokens.log_probs(policy, Bigram::hidden).unwrap();
        let theirs = batch.tokens.reference(&self.reference, Bigram::hidden);
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

    /// The part of pairs `from..to`, computed with a fork of the policy.
    fn part(&self, [from, to]: [u32; 2]) -> StepPart {
        let policy = self.policy.clone().fork(&device().autodiff());
        let pairs = self.pairs_of(&policy, from, to);
        let output = DpoLossConfig::new().init().forward(pairs.clone());
        let metrics = BatchMetrics::observe(&pairs, &output);
        StepPart::new(&policy, output.losses(), metrics, 8.0).unwrap()
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
fn parts_of_two_threads_have_the_bits_of_one() {
    let step = Step::new();
    let cuts = [[0, 3], [3, 3], [3, 7], [7, 8]];
    let expected = step.of(&cuts).unwrap();
    for _ in 0..8 {
        let parts: Vec<StepPart> = thread::scope(|scope| {
            let halves = cuts.chunks(2).map(|half| {
                let part = |cut: &[u32; 2]| step.part(*cut);
                scope.spawn(move || half.iter().map(part).collect::<Vec<_>>())
            });
            let halves: Vec<_> = halves.collect();
            let done = halves.into_iter().map(|thread| thread.join().unwrap());
            done.flatten().collect()
        });
        let mut sum = Accumulation::over(8.0).unwrap();
        for part in parts {
            sum.add_part(&step.policy, part).unwrap();
        }
        assert_eq!(sum.examples(), 8);
        let (grads, metrics) = sum.clipped(&step.policy, 0.01).unwrap();
        assert_eq!((step.numbers(&grads), entries(metrics)), expected);
    }
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
    assert!(format!("{nothing:?}").starts_with("Accumulation { total: 1.0, examples: 0"));
    let error = nothing.clipped(&step.policy, 0.0).unwrap_err();
    assert_eq!(error.name(), "max_norm");

    let mut other = Accumulation::over(9.0).unwrap();
    let error = other.add_part(&step.policy, step.part([0, 8])).unwrap_err();
    assert_eq!(error.to_string(), "`total`: expected 9, found 8");
    assert_eq!(other.examples(), 0, "a part that is refused leaves nothing");
    let pairs = step.pairs_of(&step.policy.valid(), 0, 8);
    let output = DpoLossConfig::new().init().forward(pairs.clone());
    let error = Accumulation::over(8.0)
        .unwrap()
        .add(&step.policy, &pairs, output)
        .unwrap_err();
    assert_eq!((error.name(), error.found()), ("losses", "none"));
}

/// Parts of a step of 32 pairs.
const ONES: [u32; 32] = [1; 32];
const FOURS: [u32; 8] = [4; 8];
const UNEQUAL: [u32; 6] = [1, 2, 3, 5, 8, 13];

impl Step {
    fn parts(&self, sizes: &[u32]) -> Vec<ReferencedPair> {
        let mut from = 0;
        let part = |&size| {
            from += size;
            self.pairs(from - size, from)
        };
        sizes.iter().map(part).collect()
    }

    fn accumulated<B: Observe + Clone>(
        &self,
        parts: impl IntoIterator<Item = B>,
        objective: &impl Objective<B>,
    ) -> Vec<f64> {
        let mut step = Accumulation::over(32.0).unwrap();
        for part in parts {
            let output = objective.forward(part.clone());
            step.add(&self.policy, &part, output).unwrap();
        }
        // Far above the norm: nothing is clipped.
        let (grads, _) = step.clipped(&self.policy, 1e6).unwrap();
        self.numbers(&grads)
    }

    /// Each part its own mean, and then the mean of these.
    fn mean_of_means(&self, sizes: &[u32], objective: &impl Objective<ReferencedPair>) -> Vec<f64> {
        let means = self.parts(sizes).into_iter();
        let means: Vec<Tensor<1>> = means.map(|part| objective.forward(part).mean()).collect();
        let loss = Tensor::cat(means, 0).mean();
        let grads = GradientsParams::from_grads(loss.backward(), &self.policy);
        self.numbers(&grads)
    }

    /// ‖g − g₃₂‖/‖g₃₂‖ of the gradient g of each way to take the step, g₃₂ of one batch of 32.
    fn errors(&self) -> [(&'static str, f64); 7] {
        let dpo = DpoLossConfig::new().init();
        let sft = SftTerm::new(dpo.clone(), 1.0).unwrap();
        let sft = sft.with_normalization(NllNormalization::Token);
        let of_whole = [
            self.mean_of_means(&[32], &dpo),
            self.mean_of_means(&[32], &sft),
        ];
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let error = |g: Vec<f64>, whole: &[f64]| {
            let difference: Vec<f64> = g.iter().zip_equal(whole).map(|(a, b)| a - b).collect();
            norm(&difference) / norm(whole)
        };
        let by_sizes = |sizes| error(self.accumulated(self.parts(sizes), &dpo), &of_whole[0]);
        let by_means = |sizes| error(self.mean_of_means(sizes, &dpo), &of_whole[0]);

        let tokens = to_vec(self.pairs(0, 32).chosen.policy().lengths())
            .iter()
            .sum();
        let over_step = |part: ReferencedPair| WithStepTokens::new(part, tokens, 32.0).unwrap();
        let of_step = self.accumulated(self.parts(&FOURS).into_iter().map(over_step), &sft);
        [
            ("32 parts of 1, Accumulation", by_sizes(&ONES)),
            ("8 parts of 4, Accumulation", by_sizes(&FOURS)),
            ("1 + 2 + 3 + 5 + 8 + 13, Accumulation", by_sizes(&UNEQUAL)),
            ("8 parts of 4, mean of their means", by_means(&FOURS)),
            (
                "1 + 2 + 3 + 5 + 8 + 13, mean of their means",
                by_means(&UNEQUAL),
            ),
            (
                "8 parts of 4, NLL over the tokens of the step",
                error(of_step, &of_whole[1]),
            ),
            (
                "8 parts of 4, NLL over the tokens of each part",
                error(self.accumulated(self.parts(&FOURS), &sft), &of_whole[1]),
            ),
        ]
    }
}

#[test]
fn a_mean_of_means_is_another_gradient() {
    for (i, (way, error)) in Step::new().errors().into_iter().enumerate() {
        println!("{way}: {error:.2e}");
        let right = ![4, 6].contains(&i);
        assert!(
            if right { error < 1e-6 } else { error > 0.01 },
            "{way}: {error}"
        );
    }
}

/// Bars of the errors. No line is empty: the guide holds the figure as a block of HTML.
fn figure(errors: &[(&str, f64)]) -> String {
    let height = 44 + 24 * errors.len();
    let mut svg = format!(
        "<svg viewBox=\"0 0 720 {height}\" xmlns=\"http://www.w3.org/2000/svg\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"720\" height=\"{height}\" fill=\"#FFFFFF\"/>\n\
         <text x=\"16\" y=\"24\" font-weight=\"bold\">Error of the gradient against one batch of 32 pairs</text>\n"
    );
    let largest = errors.iter().map(|(_, error)| *error).fold(0.0, f64::max);
    for (i, (way, error)) in errors.iter().enumerate() {
        let (y, width) = (56 + 24 * i, 260.0 * error / largest);
        let (bar, end) = (y - 12, 352.0 + width);
        let percent = 100.0 * error;
        writeln!(
            svg,
            "<text x=\"16\" y=\"{y}\">{way}</text>\n\
             <rect x=\"344\" y=\"{bar}\" width=\"{width:.0}\" height=\"16\" fill=\"#D55E00\"/>\n\
             <text x=\"{end:.0}\" y=\"{y}\">{percent:.0} %</text>"
        )
        .unwrap();
    }
    svg + "</svg>\n"
}

#[test]
fn the_figure_is_up_to_date() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/accumulation.svg");
    let drawn = figure(&Step::new().errors());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        return std::fs::write(file, drawn).unwrap();
    }
    let kept = std::fs::read_to_string(file).unwrap();
    let hint =
        "docs/accumulation.svg: run UPDATE_DOCS=1 cargo test --workspace --test suite accumulation";
    assert!(drawn == kept, "{hint}");
}

/// Workers of unequal shares, of which one has nothing of this step.
#[test]
fn the_step_of_all_workers_is_one_large_batch() {
    let step = Step::new();
    let (whole, metrics) = step.of(&[[0, 8]]).unwrap();
    let shares: [&[[u32; 2]]; 3] = [&[[0, 5]], &[], &[[5, 6], [6, 8]]];
    let workers = Threads::new(3, Duration::from_mins(1)).unwrap();
    let found = thread::scope(|scope| {
        let worker = |share: &'static [[u32; 2]]| {
            let (step, workers) = (&step, workers.clone());
            scope.spawn(move || {
                let mut own = Accumulation::over(8.0).unwrap();
                for part in share {
                    own.add_part(&step.policy, step.part(*part)).unwrap();
                }
                let all = own.reduced(&step.policy, &workers).unwrap();
                assert_eq!(all.examples(), 8);
                let (grads, metrics) = all.clipped(&step.policy, 0.01).unwrap();
                (step.numbers(&grads), entries(metrics))
            })
        };
        shares.map(worker).map(|worker| worker.join().unwrap())
    });
    for of_worker in &found {
        assert_close(&of_worker.0, &whole, 1e-6, "gradients");
        for ((key, found), (_, expected)) in of_worker.1.iter().zip_equal(&metrics) {
            assert_close(&[*found], &[*expected], 1e-6, key);
        }
        // The same bits, or the weights of workers would part.
        assert_eq!(of_worker, &found[0]);
    }
}

#[test]
fn workers_with_more_examples_than_the_step() {
    let step = Step::new();
    let mut own = Accumulation::over(8.0).unwrap();
    own.add_part(&step.policy, step.part([0, 5])).unwrap();
    let workers = Threads::new(2, Duration::from_mins(1)).unwrap();
    let error = thread::scope(|scope| {
        scope.spawn(|| workers.total(4, &device()).unwrap());
        own.reduced(&step.policy, &workers).unwrap_err()
    });
    assert_eq!(
        error.to_string(),
        "the workers have 9 examples, of a step of 8"
    );
}

/// Chosen, rejected and imitated sequences of five examples, whose sums are leaves.
struct Sequences([(Tensor<1>, [usize; 5]); 3]);

impl Sequences {
    fn new() -> Self {
        Self([
            (leaf(&[-4.0, -9.0, -2.5, -7.0, -1.5]), [3, 5, 2, 11, 1]),
            (leaf(&[-7.0, -8.0, -3.0, -4.0, -6.0]), [4, 4, 1, 3, 9]),
            (leaf(&[-3.0, -6.0, -2.0, -8.0, -9.0]), [2, 5, 3, 4, 13]),
        ])
    }

    fn some(&self, i: usize, places: &Range<usize>) -> SequenceLogProbs {
        let (sums, lengths) = &self.0[i];
        sequence(sums.clone().slice(places.clone()), &lengths[places.clone()])
    }

    fn pairs(&self, places: &Range<usize>) -> PolicyPair {
        PolicyPair::new(self.some(0, places), self.some(1, places)).unwrap()
    }

    fn referenced(&self, places: &Range<usize>) -> ReferencedPair {
        let [chosen, rejected] = [0, 1].map(|i| {
            let (_, lengths) = &self.0[i];
            let lengths = &lengths[places.clone()];
            let sums: Vec<f64> = lengths.iter().map(|length| -1.5 * *length as f64).collect();
            sequence(f64s(&sums), lengths)
        });
        let reference = PolicyPair::new(chosen, rejected).unwrap();
        self.pairs(places).relative_to(reference).unwrap()
    }

    fn imitating<B: Batch>(&self, batch: B, places: &Range<usize>) -> WithNll<B> {
        WithNll::new(batch, self.some(2, places)).unwrap()
    }

    /// The loss, and its gradient with respect to all sequences.
    fn of(&self, loss: &Tensor<1>) -> Vec<f64> {
        let grads = loss.backward();
        let grads = self.0.iter().map(|(leaf, _)| {
            let grad = leaf.grad(&grads);
            grad.map_or(vec![0.0; 5], to_vec)
        });
        grads.fold(to_vec(loss.clone()), |all, grad| [all, grad].concat())
    }
}

/// Losses and gradients of unequal parts are those of one batch, in f64, where a mean over tokens has
/// the tokens of the step, and not where it has those of each part.
#[test]
fn token_means_of_parts_add_up_to_the_step() {
    fn check<B: Batch>(
        name: &str,
        tokens: usize,
        objective: &(impl Objective<B> + Objective<WithStepTokens<B>>),
        batch: impl Fn(&Sequences, &Range<usize>) -> B,
    ) {
        assert!(Objective::<B>::whole_batch(objective), "{name}");
        let of_step = Objective::<WithStepTokens<B>>::whole_batch(objective);
        assert!(!of_step, "{name}");
        let sequences = Sequences::new();
        let whole = objective.forward(batch(&sequences, &(0..5))).mean();
        let expected = sequences.of(&whole);
        let parts = [0..2, 2..3, 3..5];
        let sum = |part: &dyn Fn(&Sequences, &Range<usize>) -> Tensor<1>| {
            let sequences = Sequences::new();
            let losses = parts
                .iter()
                .map(|places| part(&sequences, places))
                .collect();
            sequences.of(&Tensor::cat(losses, 0).sum())
        };
        let over_step = sum(&|sequences, places| {
            let part = WithStepTokens::new(batch(sequences, places), tokens as f64, 5.0).unwrap();
            objective.forward(part).normalized_by(5.0).unwrap()
        });
        assert_close(&over_step, &expected, 1e-14, name);
        let over_parts = sum(&|sequences, places| {
            let part = batch(sequences, places);
            objective.forward(part).normalized_by(5.0).unwrap()
        });
        let apart = over_parts.iter().zip_equal(&expected);
        let apart = apart.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart > 0.01, "{name}: parts are {apart} from the batch");
    }
    let token = NllNormalization::Token;
    let (chosen, imitated) = (3 + 5 + 2 + 11 + 1, 2 + 5 + 3 + 4 + 13);
    let orpo = OrpoLossConfig::trl().init();
    let cpo = CpoLossConfig::trl().init();
    let tpo = TpoLossConfig::trl().init();
    let dpo = SftTerm::new(DpoLossConfig::new().init(), 0.5).unwrap();
    let dpo = dpo.with_normalization(token);
    let simpo = SftTerm::new(SimpoLossConfig::new().init(), 0.5).unwrap();
    let simpo = simpo.with_normalization(token);
    let free = |s: &Sequences, places: &_| s.imitating(s.pairs(places), places);
    let against = |s: &Sequences, places: &_| s.imitating(s.referenced(places), places);
    check("ORPO", chosen, &orpo, Sequences::pairs);
    check("ORPO, with a column", imitated, &orpo, free);
    check("CPO", chosen, &cpo, Sequences::pairs);
    check("CPO, with a column", imitated, &cpo, free);
    check("TPO", imitated, &tpo, free);
    check("DPO and SFT", chosen, &dpo, Sequences::referenced);
    check("DPO and SFT, with a column", imitated, &dpo, against);
    check("SimPO and SFT", chosen, &simpo, Sequences::pairs);
    check("SimPO and SFT, with a column", imitated, &simpo, free);
}
