//! Five families of objectives align a language model, and a program judges the result.
//!
//! ```text
//! cargo run --release -p align
//! ```
//!
//! 1. A small transformer is fitted to noisy demonstrations of a task (sort six digits).
//! 2. It samples its own completions of new prompts, and a program scores them.
//! 3. Each objective aligns a copy of it on these scores: as pairs, unpaired completions or
//!    ranked lists.
//! 4. Fresh samples on held-out prompts show what that did.
//!
//! With `--judge reward-model` the scores of 3 come from a reward model that learned from the
//! program's pairs of other prompts, as people's preferences are used. The program still says how
//! good the result is.
//!
//! With `--model stories260K.bin --tokenizer tok512.bin` the same code aligns that pretrained
//! model; docs/measured.md says where to get the two files.

mod llama;
mod objective;
mod plot;
mod report;
mod reward;
mod rollout;
mod stories;
mod task;
mod train;

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::Device;
use clap::{Parser, ValueEnum};
use objective::Loss;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use report::Held;
use reward::RewardModel;
use rollout::{Batching, List, log_probs_of, rollout, sample};
use stories::Stories;
use task::{Sorting, Task};
use train::Plan;

/// Aligns a small language model with preference objectives.
#[derive(Parser)]
struct Arguments {
    /// The objective: dpo, ipo, kto, orpo, rrhf, or all
    #[arg(long, default_value = "all", value_parser = losses)]
    loss: Losses,
    /// A short run that only shows that everything works
    #[arg(long)]
    quick: bool,
    /// Each prompt once, with its completions in one row: the same numbers, to rounding
    #[arg(long)]
    shared_prefix: bool,
    /// Who says which completion is better: the program, or a reward model that learned from pairs
    /// of other prompts. Results are the program's scores either way
    #[arg(long, value_enum, default_value_t = Judge::Program)]
    judge: Judge,
    /// The same seed gives the same numbers, bit by bit on Flex
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// A pretrained model in llama2.c's format, instead of the fitted one
    #[arg(long, requires = "tokenizer")]
    model: Option<PathBuf>,
    /// The tokenizer of that model
    #[arg(long, requires = "model")]
    tokenizer: Option<PathBuf>,
    /// Where the curves go; those of the log-probs go beside it
    #[arg(long, default_value = "align.svg")]
    svg: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Judge {
    Program,
    RewardModel,
}

#[derive(Clone)]
struct Losses(Vec<Loss>);

fn losses(name: &str) -> Result<Losses, String> {
    if name == "all" {
        return Ok(Losses(Loss::ALL.to_vec()));
    }
    ValueEnum::from_str(name, true).map(|loss| Losses(vec![loss]))
}

fn plan(quick: bool, stories: bool) -> Plan {
    let full = Plan {
        base_steps: 600,
        judge_steps: 400,
        prompts: if stories { 192 } else { 768 },
        held_out: if stories { 96 } else { 512 },
        candidates: 4,
        batch: if stories { 16 } else { 32 },
        steps: if stories { 60 } else { 160 },
        learning_rate: if stories { 2e-4 } else { 3e-4 },
        every: 20,
    };
    if !quick {
        return full;
    }
    Plan {
        base_steps: 60,
        judge_steps: 24,
        prompts: full.prompts / 8,
        held_out: full.held_out / 8,
        batch: 8,
        steps: 12,
        every: 4,
        ..full
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let seed = arguments.seed;
    let batching = Batching {
        shared_prefix: arguments.shared_prefix,
        device: Device::default(),
    };
    let plan = plan(arguments.quick, arguments.model.is_some());
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xa11);
    let to_judge = match arguments.judge {
        Judge::Program => 0,
        Judge::RewardModel => plan.prompts,
    };
    let count = plan.prompts + plan.held_out + to_judge;

    let task: Box<dyn Task>;
    let base;
    let prompts: Vec<Vec<usize>>;
    if let (Some(model), Some(tokenizer)) = (&arguments.model, &arguments.tokenizer) {
        base = stories::load(model, &batching.device.clone().autodiff())?;
        let stories = Stories::load(tokenizer, base.embedding.weight.shape()[0])?;
        // Beginnings of stories, by the model itself; it never ends one so early.
        let starts = vec![vec![stories::START]; count];
        let openings = sample(&base, &starts, None, 12, &mut rng);
        prompts = openings
            .iter()
            .map(|o| [&[stories::START], &o[..]].concat())
            .collect();
        task = Box::new(stories);
    } else {
        base = train::base_model(&plan, seed, &batching)?;
        prompts = (0..count).map(|_| Sorting::prompt(&mut rng)).collect();
        task = Box::new(Sorting);
    }

    let with_reference = |mut lists: Vec<List>| {
        let reference = log_probs_of(&base, &lists, &batching)?;
        for (list, log_probs) in lists.iter_mut().zip(reference) {
            list.reference = log_probs;
        }
        Ok::<_, burn_preference::InvalidInput>(lists)
    };
    let (train, held_out) = prompts.split_at(plan.prompts);
    let (held_out, to_judge) = held_out.split_at(plan.held_out);
    let mut train = rollout(&base, &*task, train, plan.candidates, &mut rng);
    let held_out = rollout(&base, &*task, held_out, plan.candidates, &mut rng);
    if arguments.judge == Judge::RewardModel {
        let to_judge = rollout(&base, &*task, to_judge, plan.candidates, &mut rng);
        let judge = RewardModel::fit(&base, &to_judge, &plan, seed, &batching)?;
        let accuracy = 100.0 * judge.accuracy(&held_out, &batching)?;
        println!("judge: the program's better one is ahead in {accuracy:.1}% of held-out pairs");
        train = judge.judge(train, &batching)?;
    }
    let train = with_reference(train)?;
    let held = Held {
        task: &*task,
        lists: with_reference(held_out)?,
        base: base.clone(),
        seed,
        batching: batching.clone(),
    };

    let before = held.measure(0, &base)?;
    println!("before: {}", held.example(&base));
    let mut after = Vec::new();
    let mut curves = Vec::new();
    for loss in arguments.loss.0 {
        let start = Instant::now();
        let (policy, curve) = train::align(loss, &base, &train, &held, &plan, seed, &batching)?;
        let seconds = start.elapsed().as_secs_f64();
        println!("{:>6}: {}", loss.name(), held.example(&policy));
        let result = curve.last().expect("the last step is measured").clone();
        after.push((loss.name(), result, seconds));
        curves.push((loss.name(), curve));
    }
    report::print_table(&*task, &before, &after);
    plot::draw(&arguments.svg, task.name(), &curves)?;
    let log_probs = arguments.svg.with_extension("log-probs.svg");
    let title = "log π/π° of chosen and rejected completions, nats, held out";
    plot::draw_log_probs(&log_probs, title, &curves)?;
    println!(
        "\ncurves: {} and {}",
        arguments.svg.display(),
        log_probs.display()
    );
    Ok(())
}
