//! DPO by burn-train: loaders, metrics, checkpoints, and a run that is stopped and resumed.
//!
//! `cargo run --release --example supervised`

#[path = "toy/renderer.rs"]
mod renderer;
#[path = "toy/mod.rs"]
mod toy;

use std::path::Path;
use std::sync::Arc;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::{Dataset, InMemDataset};
use burn::module::Module;
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Tensor};
use burn::train::metric::LossMetric;
use burn::train::{InferenceStep, Learner, SupervisedTraining, TrainOutput, TrainStep};
use burn_preference::data::{Collator, Cursor, EpochLoader, Example, PairTokens, Preference};
use burn_preference::tokens::Padding;
use burn_preference::training::burn_train::{PreferenceItem, StatMetric};
use burn_preference::{
    DpoLoss, DpoLossConfig, Frozen, LossOutput, Objective, Pair, ReferencedPair,
};
use renderer::Lines;
use toy::Bigram;

/// What is trained, and what it needs for a step. Checkpoints hold the policy alone.
#[derive(Module, Debug)]
struct Dpo {
    policy: Bigram,
    reference: Frozen<Bigram>,
    #[module(skip)]
    loss: DpoLoss,
}

impl Dpo {
    fn new(device: &Device) -> Self {
        let policy = Bigram::new(device);
        Self {
            reference: Frozen::new(&policy),
            policy,
            loss: DpoLossConfig::new().with_beta(0.5).init(),
        }
    }

    fn forward(&self, batch: &PairTokens) -> (ReferencedPair, LossOutput<Pair<Tensor<1>>>) {
        let pair = || {
            let ours = batch.tokens.log_probs(&self.policy, Bigram::hidden)?;
            let theirs = batch.tokens.reference(&self.reference, Bigram::hidden)?;
            batch.pair(ours.relative_to(theirs)?)
        };
        let pair = pair().expect("the collator made the batch");
        let output = self.loss.forward(pair.clone());
        (pair, output)
    }
}

impl TrainStep for Dpo {
    type Input = PairTokens;
    type Output = PreferenceItem;

    fn step(&self, batch: PairTokens) -> TrainOutput<PreferenceItem> {
        let (pair, output) = self.forward(&batch);
        let item = PreferenceItem::new(&pair, &output);
        TrainOutput::new(self, output.mean().backward(), item)
    }
}

impl InferenceStep for Dpo {
    type Input = PairTokens;
    type Output = PreferenceItem;

    fn step(&self, batch: PairTokens) -> PreferenceItem {
        let (pair, output) = self.forward(&batch);
        PreferenceItem::new(&pair, &output)
    }
}

/// Completions that count upwards were preferred to those that count downwards.
fn pairs() -> InMemDataset<Example<Vec<u32>, Preference>> {
    let up = |from: u32| vec![(from + 1) % 7, (from + 2) % 7];
    let down = |from: u32| vec![(from + 6) % 7, (from + 5) % 7];
    let pair = |from| Example::pair(vec![from], up(from), down(from));
    InMemDataset::new((0..7).map(pair).collect())
}

/// Trains until `epochs` are done, going on after `done` of them.
fn train(directory: &Path, epochs: usize, done: usize) -> Dpo {
    let device = Device::default();
    let examples = Arc::new(pairs());
    // The order of an epoch follows from its number, so that a resumed run sees the same batches.
    let cursor = Cursor::new(7, 3).at_epoch(done as u64);
    let collator = Collator::new(Padding::new(7));
    let loader = |device| {
        EpochLoader::new(Arc::clone(&examples), collator, 3, cursor.clone(), device)
            .expect("a cursor of these examples")
    };
    let training = SupervisedTraining::new(
        directory,
        Arc::new(loader(&device.clone().autodiff())),
        Arc::new(loader(&device)),
    )
    .metrics((
        LossMetric::new(),
        StatMetric::new("rewards/accuracies"),
        StatMetric::new("rewards/margins"),
    ))
    .renderer(Box::new(Lines::default()))
    .with_application_logger(None)
    .with_default_checkpointers()
    .num_epochs(epochs);
    let training = if done > 0 {
        training.checkpoint(done)
    } else {
        training
    };
    let optimizer = AdamWConfig::new().with_epsilon(1e-8).init();
    let result = training.launch(Learner::new(Dpo::new(&device), optimizer, 0.01));
    // A run that failed returns a model as well: that of the last step before.
    if let Some(error) = result.error {
        panic!("the run failed: {error}");
    }
    result.model
}

fn report(name: &str, model: &Dpo) -> Vec<f32> {
    let examples = pairs().iter().collect::<Result<_, _>>().expect("in memory");
    let collator = Collator::new(Padding::new(7));
    let batch = collator.batch(examples, &Device::default());
    let (_, output) = model.valid().forward(&batch);
    let losses = output
        .losses()
        .into_data()
        .iter::<f32>()
        .collect::<Vec<_>>();
    println!("{name}: loss {:.6}", losses.iter().sum::<f32>() / 7.0);
    losses
}

fn main() {
    let root = tempfile::tempdir().expect("a temporary directory");
    report("before", &Dpo::new(&Device::default()));
    let whole = train(&root.path().join("whole"), 6, 0);
    let whole = report("six epochs", &whole);

    let stopped = root.path().join("stopped");
    report("three epochs", &train(&stopped, 3, 0));
    let resumed = train(&stopped, 6, 3);
    let resumed = report("three, then three more", &resumed);
    assert_eq!(whole, resumed, "bit by bit");
    assert!(whole.iter().all(|loss| *loss < 0.5), "{whole:?}");
}
