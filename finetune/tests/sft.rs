//! Ten steps of SFT against TRL's on the same model and rows (scripts/sft.py): which tokens count, the
//! loss and the norm of the gradient of every step, entropy and token accuracy of every batch, from
//! padded rows and from packed ones.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::optim::AdamWConfig;
use burn::tensor::Device;
use burn_preference::data::{Demonstration, Example};
use burn_preference::tokens::{Packing, Padding, Sequence, TokenBatch};
use burn_preference::training::accumulation::Accumulation;
use burn_preference::{
    BatchMetrics, Objective, SftLoss, SftLossConfig, TokenWeighting, WithStepTokens,
};
use finetune::{Batching, Chat, ColumnNames, DataOptions, DataSource, load};
use serde::Deserialize;
use serde_json::Value;
use support::{copy, data};

/// Of losses in nats, of the gradient's norm, of entropies in nats.
const TOLERANCE: f64 = 1e-5;

#[derive(Deserialize)]
struct Goldens {
    rate: f64,
    epsilon: f32,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    rows: Vec<Row>,
    steps: Vec<Step>,
}

/// A row as TRL tokenizes it.
#[derive(Deserialize)]
struct Row {
    #[serde(rename = "row")]
    content: Value,
    ids: Vec<u32>,
    counts: Vec<bool>,
}

#[derive(Deserialize)]
struct Step {
    batches: Vec<Batch>,
    grad_norm: f64,
    loss: f64,
}

#[derive(Deserialize)]
struct Batch {
    rows: Vec<usize>,
    entropy: f64,
    accuracy: f64,
}

fn goldens() -> Goldens {
    serde_json::from_str(&fs::read_to_string(data("sft.json")).unwrap()).unwrap()
}

/// A folder with the tiny Llama and the tokenizer, whose template may mark what the assistant writes.
fn folder(at: &Path, marks: bool) -> PathBuf {
    let folder = at.join(format!("marks_{marks}"));
    copy(&data("llama"), &folder);
    copy(&data("tokenizer"), &folder);
    if marks {
        let path = folder.join("tokenizer_config.json");
        let text = fs::read_to_string(&path).unwrap();
        let [plain, marked] = [
            "{{- '<|assistant|>' + message['content'] + eos_token }}",
            "{{- '<|assistant|>' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}",
        ];
        assert!(text.contains(plain));
        fs::write(&path, text.replace(plain, marked)).unwrap();
    }
    folder
}

/// The rows of a case, read and tokenized as the program does, in their order.
fn examples(case: &Case, folder: &Path, plain: bool) -> Vec<Example<Vec<u32>, Demonstration>> {
    let rows = folder.join("rows.jsonl");
    let lines: Vec<String> = case
        .rows
        .iter()
        .map(|row| row.content.to_string())
        .collect();
    fs::write(&rows, lines.join("\n")).unwrap();
    let model = load(folder, &Device::default()).unwrap();
    let chat = Chat::open(folder, model.config()).unwrap();
    let options = DataOptions {
        max_length: 64,
        columns: ColumnNames::default(),
        group: None,
        held_out: 0.0,
        plain,
        skip_errors: false,
        seed: 0,
    };
    let source: DataSource = rows.to_str().unwrap().parse().unwrap();
    let texts = |path: &Path| options.demonstrations(path, &chat);
    let splits = options.read(&[source], &[], texts, &chat).unwrap();
    let mut examples = splits.train;
    examples.sort_by_key(|example| example.line);
    assert_eq!(examples.len(), case.rows.len());
    examples
}

fn sequences(examples: &[Example<Vec<u32>, Demonstration>], places: &[usize]) -> Vec<Sequence> {
    places
        .iter()
        .flat_map(|&i| examples[i].sequences())
        .collect()
}

fn objective(name: &str) -> SftLoss {
    let config = SftLossConfig::new();
    if name == "dft" {
        config
            .with_token_weighting(TokenWeighting::Probability)
            .init()
    } else {
        config.init()
    }
}

/// What differs most in a case.
#[derive(Default)]
struct Worst {
    loss: f64,
    norm: f64,
    entropy: f64,
}

fn train(name: &str, goldens: &Goldens, folder: &Path, packing: Option<Packing>) -> Worst {
    let case = &goldens.cases[name];
    let examples = examples(case, folder, name == "texts");
    let device = Device::default().autodiff();
    let mut policy = load(folder, &device).unwrap();
    let mut optimizer = AdamWConfig::new()
        .with_epsilon(goldens.epsilon)
        .with_weight_decay(0.0)
        .init();
    let batching = Batching {
        padding: Padding::new(0),
        packing,
        budget: usize::MAX,
        device: device.clone(),
    };
    let sft = objective(name);
    let mut worst = Worst::default();
    for step in &case.steps {
        let of_batches = step
            .batches
            .iter()
            .map(|batch| sequences(&examples, &batch.rows));
        let of_batches: Vec<_> = of_batches.collect();
        let all = || of_batches.iter().flatten();
        let counted: usize = all().map(Sequence::length).sum();
        let total = all().count() as f64;
        let mut accumulation = Accumulation::over(total).unwrap();
        for (sequences, batch) in of_batches.iter().zip(&step.batches) {
            let tokens = TokenBatch::new(sequences.clone(), batching.padding, &device).unwrap();
            let demonstrations = batching.demonstrations(&policy, &tokens).unwrap();
            let part = WithStepTokens::new(demonstrations, counted as f64, total).unwrap();
            let output = sft.forward(part.clone());
            let metrics = BatchMetrics::observe(&part, &output).read().unwrap();
            let get = |key| metrics.get(key).unwrap();
            assert!(
                (get("mean_token_accuracy") - batch.accuracy).abs() < 1e-6,
                "{name}"
            );
            worst.entropy = worst.entropy.max((get("entropy") - batch.entropy).abs());
            accumulation.add(&policy, &part, output).unwrap();
        }
        let (gradients, metrics) = accumulation.clipped(&policy, 1.0).unwrap();
        let metrics = metrics.read().unwrap();
        let off = |key, expected: f64| (metrics.get(key).unwrap() - expected).abs();
        worst.loss = worst.loss.max(off("loss", step.loss));
        worst.norm = worst.norm.max(off("grad_norm", step.grad_norm));
        policy = optimizer.step(goldens.rate, policy, gradients);
    }
    worst
}

#[test]
fn ten_steps_are_trls() {
    let goldens = goldens();
    assert_eq!(goldens.cases.len(), 4);
    let place = tempfile::tempdir().unwrap();
    let folder = folder(place.path(), false);
    for (name, case) in &goldens.cases {
        assert!(case.steps.len() == 10 && case.steps[9].loss != case.steps[0].loss);
        let rows = Packing::new(Padding::new(0)).to_rows_of(64).unwrap();
        for packing in [None, Some(rows)] {
            let Worst {
                loss,
                norm,
                entropy,
            } = train(name, &goldens, &folder, packing);
            let packed = if packing.is_some() { ", packed" } else { "" };
            println!(
                "{name}{packed}: off by at most {loss:.1e} nats, {norm:.1e} of a norm, {entropy:.1e} \
                 nats of entropy"
            );
            let most = [loss, norm, entropy].into_iter().fold(0.0, f64::max);
            assert!(most < TOLERANCE, "{name}{packed}: {most}");
        }
    }
}

/// By a template that marks what the assistant writes, as TRL asks for, and by one that does not.
#[test]
fn the_tokens_that_count_are_trls() {
    let place = tempfile::tempdir().unwrap();
    for marks in [false, true] {
        let folder = folder(place.path(), marks);
        for (name, case) in &goldens().cases {
            let examples = examples(case, &folder, name == "texts");
            for (row, example) in case.rows.iter().zip(&examples) {
                let sequence = &example.sequences()[0];
                assert_eq!(sequence.ids(), row.ids, "{name}: {}", row.content);
                let mut counts = vec![false; sequence.prompt().len()];
                let all = vec![true; sequence.completion().len()];
                counts.extend(sequence.counted().unwrap_or(&all));
                assert_eq!(counts, row.counts, "{name}: {}", row.content);
            }
        }
    }
}
