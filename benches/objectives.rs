//! What an objective costs beside the model: forward and backward of a batch of log-probs, as a
//! multiple of the least that any loss of a margin pays.
//!
//! ```console
//! cargo bench --bench objectives
//! ```
//!
//! The floor is one subtraction, one sigmoid and the mean, forward and backward, by Burn's own
//! operations. An objective is timed from the log-probs of both sides: its batch, its losses and
//! rewards, the mean, and the backward. The log-probs themselves are what a pass over the model
//! returns: `benches/head.rs` times them. Floor and objectives run in turn, in one process; the
//! table holds medians.

use std::hint::black_box;
use std::time::Instant;

use burn::tensor::{Bool, Device, Tensor, TensorData, activation};
use burn_preference::batch::{Batch, WithBaseline};
use burn_preference::config::ObjectiveConfig;
use burn_preference::{
    Objective, PolicyPair, ReferencedPair, RelativeLogProbs, SequenceLogProbs, Unpaired,
};
use clap::Parser;
use finetune::measure::median;

#[derive(Parser, Debug)]
struct Arguments {
    /// Pairs of a batch, or as many completions of one that is unpaired.
    #[arg(long, default_values_t = [8, 1024, 65536])]
    batch: Vec<usize>,
    /// Only these objectives.
    #[arg(long)]
    only: Vec<String>,
    /// How often every objective is timed.
    #[arg(long, default_value_t = 101)]
    rounds: usize,
    /// What `cargo bench` says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

const OBJECTIVES: [&str; 8] = ["dpo", "ipo", "kto", "orpo", "cpo", "hinge", "nca", "simpo"];

/// Log-probs of the two completions of every pair, with their gradients.
type Leaves = [Tensor<1>; 2];

fn log_probs(batch: usize, step: f32) -> Tensor<1> {
    let values: Vec<f32> = (0..batch).map(|i| -1.0 - step * (i % 97) as f32).collect();
    Tensor::from_floats(values.as_slice(), &Device::default())
}

fn leaves(batch: usize) -> Leaves {
    let [chosen, rejected] =
        [0.3, 0.4].map(|step| log_probs(batch, step).autodiff().require_grad());
    // The two are on one tape, as what one model returns: nobody pays for joining two.
    drop(chosen.clone() + rejected.clone());
    [chosen, rejected]
}

/// Seven tokens each.
fn sequences(sum: Tensor<1>) -> SequenceLogProbs {
    let [batch] = sum.dims();
    SequenceLogProbs::new(sum, &vec![7; batch]).expect("as many lengths")
}

fn pair([chosen, rejected]: [SequenceLogProbs; 2]) -> PolicyPair {
    PolicyPair::new(chosen, rejected).expect("same shape")
}

/// Makes a batch of the policy's log-probs, and of what the step has beside them.
type IntoBatch<B> = Box<dyn Fn([SequenceLogProbs; 2]) -> B>;

/// The seconds of one step from such leaves.
type Step = Box<dyn Fn(Leaves) -> f64>;

fn timed(leaf: &Tensor<1>, loss: impl FnOnce() -> Tensor<1>) -> f64 {
    let start = Instant::now();
    black_box(leaf.grad(&loss().backward()));
    start.elapsed().as_secs_f64()
}

/// A step of the objective, if it takes such batches.
fn step<B: Batch + 'static>(config: &ObjectiveConfig, batch: IntoBatch<B>) -> Option<Step> {
    let objective = config.build::<B>().ok()?;
    Some(Box::new(move |leaves| {
        let leaf = leaves[0].clone();
        let policy = leaves.map(sequences);
        timed(&leaf, || objective.forward(batch(policy)).mean())
    }))
}

fn floor() -> Step {
    Box::new(|[w, l]| timed(&w.clone(), || activation::sigmoid(w - l).mean()))
}

fn objective(name: &str, batch: usize) -> Step {
    let config = format!(r#"{{"loss": "{name}"}}"#);
    let config: ObjectiveConfig = serde_json::from_str(&config).expect("the name is known");
    let reference = [0.31, 0.37].map(|step| sequences(log_probs(batch, step)));
    let [of_unpaired, _] = reference.clone();
    let reference = pair(reference);
    let desirable: Vec<bool> = (0..batch).map(|i| i % 3 > 0).collect();
    let data = TensorData::from(desirable.as_slice());
    let desirable = Tensor::<1, Bool>::from_data(data, &Device::default());
    let baseline = Tensor::from_floats([0.5], &Device::default());

    let referenced: IntoBatch<ReferencedPair> = Box::new(move |policy| {
        let policy = pair(policy);
        policy.relative_to(reference.clone()).expect("same shape")
    });
    let unpaired: IntoBatch<WithBaseline<Unpaired<RelativeLogProbs>>> =
        Box::new(move |[policy, _]| {
            let relative = policy.relative_to(of_unpaired.clone()).expect("same shape");
            let unpaired = Unpaired::new(relative, desirable.clone()).expect("same shape");
            WithBaseline::new(unpaired, baseline.clone()).expect("one number")
        });
    step(&config, referenced)
        .or_else(|| step(&config, Box::new(pair)))
        .or_else(|| step(&config, unpaired))
        .expect("one of these batches")
}

/// The median of `rounds` times of each step, one after the other in every round.
fn medians(steps: &[Step], batch: usize, rounds: usize) -> Vec<f64> {
    let mut times = vec![Vec::new(); steps.len()];
    // The first rounds warm up.
    let warm = rounds / 4 + 1;
    for round in 0..warm + rounds {
        for (step, times) in steps.iter().zip(&mut times) {
            let seconds = step(leaves(batch));
            if round >= warm {
                times.push(seconds);
            }
        }
    }
    times.into_iter().map(median).collect()
}

fn main() {
    let arguments = Arguments::parse();
    // A model has freed larger blocks than any tensor here. After that, glibc returns no small block
    // to the system, and a new tensor does not pay for fresh pages.
    drop(black_box(vec![1_u8; 16 << 20]));
    let mut names: Vec<&str> = OBJECTIVES.to_vec();
    if !arguments.only.is_empty() {
        names = arguments.only.iter().map(String::as_str).collect();
    }
    let columns = arguments.batch.iter().map(|&batch| {
        let objectives = names.iter().map(|name| objective(name, batch));
        let steps: Vec<Step> = std::iter::once(floor()).chain(objectives).collect();
        medians(&steps, batch, arguments.rounds)
    });
    let columns: Vec<Vec<f64>> = columns.collect();
    let line = |name: &str, cells: Vec<String>| println!("| {name} | {} |", cells.join(" | "));
    line(
        "pairs",
        arguments.batch.iter().map(usize::to_string).collect(),
    );
    println!("|---|{}", "---|".repeat(columns.len()));
    let times = columns
        .iter()
        .map(|column| format!("{:.1} µs", 1e6 * column[0]));
    line("floor", times.collect());
    for (row, name) in names.iter().enumerate() {
        let cell = |column: &Vec<f64>| {
            let (floor, time) = (column[0], column[row + 1]);
            format!("{:.2} × ({:.1} µs)", time / floor, 1e6 * time)
        };
        line(name, columns.iter().map(cell).collect());
    }
}
