//! KTO by burn-train: unpaired completions, z₀ from mismatched completions, class weights from the report.
//!
//! `cargo run --release --example supervised_kto`

#[path = "toy/renderer.rs"]
mod renderer;
#[path = "toy/mod.rs"]
mod toy;

use std::convert::Infallible;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use burn::data::dataloader::DataLoaderBuilder;
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::{Dataset, InMemDataset};
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsAccumulator, SgdConfig};
use burn::tensor::{Device, Tensor};
use burn::train::metric::LossMetric;
use burn::train::{InferenceStep, Learner, SupervisedTraining, TrainOutput, TrainStep};
use burn_preference::data::{
    Collator, Cursor, Desirable, Encode, EpochLoader, Example, Mismatched, Text, Tokenized,
    Truncation, UnpairedTokens, WithMismatched,
};
use burn_preference::tokens::{Padding, TokenBatch};
use burn_preference::training::burn_train::{PreferenceItem, StatMetric};
use burn_preference::training::reducer::{Local, Reducer, Threads};
use burn_preference::{
    BatchMetrics, Frozen, InvalidInput, KlEstimate, KtoLoss, KtoLossConfig, LossOutput, Objective,
    RelativeLogProbs, Unpaired, WithBaseline,
};
use renderer::Lines;
use toy::Bigram;

type Tokens = UnpairedTokens<WithMismatched>;
type Batch = WithBaseline<Unpaired<RelativeLogProbs>>;

#[derive(Module, Debug)]
struct Kto {
    policy: Bigram,
    reference: Frozen<Bigram>,
    #[module(skip)]
    loss: KtoLoss,
    /// `Threads` where several workers train: z₀ and the mean loss are those of all of them.
    #[module(skip)]
    reducer: Arc<dyn Reducer>,
}

impl Kto {
    fn log_ratios(&self, tokens: &TokenBatch) -> Result<RelativeLogProbs, InvalidInput> {
        let theirs = tokens.reference(&self.reference, Bigram::hidden)?;
        tokens
            .log_probs(&self.policy, Bigram::hidden)?
            .relative_to(theirs)
    }

    fn forward(
        &self,
        batch: &Tokens,
        reducer: &dyn Reducer,
    ) -> Result<(Batch, LossOutput<Tensor<1>>), InvalidInput> {
        let estimate = KlEstimate::from_mismatched(&self.log_ratios(batch.mismatched())?);
        let baseline = estimate.reduced(reducer).expect("all workers come");
        let unpaired = batch.unpaired(self.log_ratios(&batch.tokens)?)?;
        let unpaired = WithBaseline::new(unpaired, baseline.baseline())?;
        let output = self.loss.forward(unpaired.clone());
        Ok((unpaired, output))
    }
}

impl TrainStep for Kto {
    type Input = Tokens;
    type Output = PreferenceItem;

    fn step(&self, batch: Tokens) -> TrainOutput<PreferenceItem> {
        let forward = self.forward(&batch, &*self.reducer);
        let (unpaired, output) = forward.expect("the collator made the batch");
        let item = PreferenceItem::new(&unpaired, &output);
        // burn-train adds the gradients of its workers: divided by the examples of all of them, they
        // are the gradient of the mean. `mean()` would make it once per worker too large.
        let losses = output.losses();
        let total = self.reducer.total(losses.dims()[0], &losses.device());
        let loss = output.normalized_by(total.expect("all workers come"));
        let grads = loss.expect("more than no example").backward();
        TrainOutput::new(self, grads, item)
    }
}

impl InferenceStep for Kto {
    type Input = Tokens;
    type Output = PreferenceItem;

    fn step(&self, batch: Tokens) -> PreferenceItem {
        // One worker validates: the others would not come to a sum.
        let forward = self.forward(&batch, &Local);
        let (unpaired, output) = forward.expect("the collator made the batch");
        PreferenceItem::new(&unpaired, &output)
    }
}

/// The losses of `all` after one step, for which each of `batches` had a worker.
fn losses_after_step(model: &Kto, batches: Vec<Tokens>, all: &Tokens) -> Vec<f32> {
    let workers = Threads::new(batches.len(), Duration::from_mins(1)).expect("one at least");
    let model = Kto {
        reducer: Arc::new(workers),
        ..model.clone()
    };
    let steps: Vec<TrainOutput<_>> = thread::scope(|scope| {
        let start = |batch| {
            let model = model.clone();
            scope.spawn(move || TrainStep::step(&model, batch))
        };
        let workers: Vec<_> = batches.into_iter().map(start).collect();
        let ends = workers.into_iter().map(thread::ScopedJoinHandle::join);
        ends.map(|end| end.expect("no panic")).collect()
    });
    // As burn-train adds them.
    let mut accumulator = GradientsAccumulator::new();
    for step in steps {
        accumulator.accumulate(&model, step.grads);
    }
    let model = SgdConfig::new()
        .init()
        .step(10.0, model, accumulator.grads());
    let (_, output) = model.forward(all, &Local).expect("fits");
    output.losses().into_data().iter::<f32>().collect()
}

/// Two desirable completions that count upwards to an undesirable one that counts downwards.
fn examples() -> InMemDataset<Example<Text, Desirable>> {
    let text = |digits: [u32; 2]| Text::Plain(digits.map(|d| (d % 7).to_string()).concat());
    let example = |i: u32| {
        let from = i % 7;
        let up = !i.is_multiple_of(3);
        let completion = if up {
            [from + 1, from + 2]
        } else {
            [from + 6, from + 5]
        };
        Example::unpaired(Text::Plain(from.to_string()), text(completion), up)
    };
    InMemDataset::new((0..21).map(example).collect())
}

/// A token per digit.
#[expect(clippy::unnecessary_wraps, reason = "what `Tokenized` asks for")]
fn digits(text: Encode<'_>) -> Result<Vec<u32>, Infallible> {
    let text = text.content.as_plain().expect("no conversations here");
    Ok(text.chars().filter_map(|c| c.to_digit(10)).collect())
}

fn main() {
    let truncation = Truncation::Drop { max_length: 3 };
    let tokens = Tokenized::new(examples(), digits, truncation).expect("in memory");
    print!("{}", tokens.report());
    let (up, down) = tokens.report().classes.expect("unpaired completions");
    // λ_U so that both classes weigh the same: the paper's recommendation.
    let config = KtoLossConfig::new().with_undesirable_weight(up as f64 / down as f64);
    println!("{}", config.class_ratio(up, down));

    let device = Device::default();
    let examples = Arc::new(Mismatched::new(tokens, truncation));
    let collator = Collator::new(Padding::new(7));
    let cursor = Cursor::new(up + down, 1);
    let training = device.clone().autodiff();
    let train = EpochLoader::new(Arc::clone(&examples), collator, 7, cursor, &training);
    let train = train.expect("a cursor of these examples");
    let valid = DataLoaderBuilder::new(collator)
        .batch_size(7)
        .set_device(device.clone())
        .build(Arc::clone(&examples));
    let policy = Bigram::new(&device);
    let model = Kto {
        reference: Frozen::new(&policy),
        policy,
        loss: config.init(),
        reducer: Arc::new(Local),
    };
    let optimizer = AdamWConfig::new().with_epsilon(1e-8).init();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let result = SupervisedTraining::new(directory.path(), Arc::new(train), valid)
        .metrics((
            LossMetric::new(),
            StatMetric::new("rewards/chosen"),
            StatMetric::new("rewards/rejected"),
            StatMetric::new("rewards/margins"),
            StatMetric::new("kl"),
        ))
        .renderer(Box::new(Lines::default()))
        .with_application_logger(None)
        .num_epochs(8)
        .launch(Learner::new(model.clone(), optimizer, 0.01));
    // A run that failed returns a model as well: that of the last step before.
    if let Some(error) = result.error {
        panic!("the run failed: {error}");
    }

    let examples: Vec<_> = examples
        .iter()
        .collect::<Result<_, _>>()
        .expect("in memory");
    let batch = |examples: &[_]| collator.batch(examples.to_vec(), &device);
    let all = batch(&examples);
    let (unpaired, output) = result.model.forward(&all, &Local).expect("fits");
    let metrics = BatchMetrics::observe(&unpaired, &output).read();
    let margin = metrics.expect("the device works").get("rewards/margins");
    println!("margin: {:.3}", margin.expect("both classes"));
    assert!(
        margin > Some(0.1),
        "desirable ones are told from undesirable ones"
    );

    // Two workers with unequal batches take the step of one with all examples.
    let one = losses_after_step(&model, vec![batch(&examples)], &all);
    let two = losses_after_step(
        &model,
        vec![batch(&examples[..9]), batch(&examples[9..])],
        &all,
    );
    let differences = one.iter().zip(&two).map(|(one, two)| (one - two).abs());
    let worst = differences.fold(0.0, f32::max);
    println!("two workers instead of one: losses differ by {worst:.0e}");
    assert!(
        worst < 1e-5,
        "a step does not depend on the number of workers"
    );
}
