//! Diffusion-DPO and Diffusion-KTO: pairs and unpaired points align a denoiser of points in the plane.
//!
//! ```text
//! cargo run --release --example denoiser
//! ```
//!
//! 1. A small network learns to remove noise from eight clouds on a circle.
//! 2. It samples points, and a judge who likes height says, with some noise, which of two is better.
//! 3. Each objective aligns a copy of it.
//! 4. Fresh samples, and pairs that were held out, show what that did.
//!
//! Only `likelihood.rs` is new: a denoiser has no log-probability, but an error, and −½ of it is one
//! up to a constant. Everything after it is what text has. The guide's chapter `beyond_text` says
//! what is different, and how large β is.

#[path = "../figure/mod.rs"]
mod figure;
mod likelihood;
mod model;
mod plot;
mod train;

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::Device;
use clap::Parser;
use model::{Denoiser, Point, Schedule};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use train::{Loss, Plan, Preference, SCALE, align, base_model, held_out, preferences, reward};

/// Aligns a small denoiser with preferences.
#[derive(Parser)]
struct Arguments {
    /// A short run that only shows that everything works
    #[arg(long)]
    quick: bool,
    /// The same seed gives the same numbers, bit by bit on Flex
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Where the figure goes
    #[arg(long, default_value = "denoiser.svg")]
    svg: PathBuf,
}

fn plan(quick: bool) -> Plan {
    if quick {
        return Plan {
            base_steps: 100,
            pairs: 128,
            held_out: 64,
            steps: 20,
            batch: 32,
            draws: 8,
            samples: 200,
        };
    }
    Plan {
        base_steps: 3000,
        pairs: 2048,
        held_out: 1024,
        steps: 800,
        batch: 128,
        draws: 64,
        samples: 4000,
    }
}

/// What a model samples, and what it makes of the held-out pairs.
struct Measured {
    samples: Vec<Point>,
    reward: f32,
    on_data: f64,
    preference: String,
}

fn measure(
    policy: &Denoiser,
    base: &Denoiser,
    schedule: &Schedule,
    pairs: &[Preference],
    plan: &Plan,
    seed: u64,
) -> Result<Measured, Box<dyn Error>> {
    // The same noise for every model.
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xd1f);
    let metrics = held_out(policy, base, schedule, pairs, plan, &mut rng)?;
    let of = |key| metrics.get(key).expect("pairs have it");
    let preference = if of("rewards/ties") == 1.0 {
        "all ties".to_owned()
    } else {
        format!("{:.1}%", 100.0 * of("rewards/accuracies"))
    };
    let samples = schedule.sample(policy, plan.samples, &mut rng);
    let count = samples.len();
    Ok(Measured {
        reward: samples.iter().copied().map(reward).sum::<f32>() / count as f32,
        on_data: samples.iter().filter(|x| train::on_data(**x)).count() as f64 / count as f64,
        preference,
        samples,
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { quick, seed, svg } = Arguments::parse();
    let plan = plan(quick);
    let device = Device::default();
    device.seed(seed);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let schedule = Schedule::new();

    let start = Instant::now();
    let base = base_model(&plan, &schedule, &device, &mut rng)?;
    let seconds = start.elapsed().as_secs_f64();
    let samples = schedule.sample(&base, 2 * (plan.pairs + plan.held_out), &mut rng);
    let pairs = preferences(&samples, &mut rng);
    let (train, held) = pairs.split_at(plan.pairs);
    let right = |pair: &&Preference| reward(pair.chosen) > reward(pair.rejected);
    let right = 100.0 * held.iter().filter(right).count() as f64 / held.len() as f64;
    println!("βT = {SCALE}, {} pairs to train on", train.len());
    println!(
        "{} held out; the judge chose the higher point in {right:.1}%\n",
        held.len()
    );

    let before = measure(&base, &base, &schedule, held, &plan, seed)?;
    let mut rows = vec![("before", before, seconds)];
    for (name, loss) in [("Diffusion-DPO", Loss::Dpo), ("Diffusion-KTO", Loss::Kto)] {
        let start = Instant::now();
        let policy = align(loss, &base, &schedule, train, &plan, &mut rng)?;
        let seconds = start.elapsed().as_secs_f64();
        rows.push((
            name,
            measure(&policy, &base, &schedule, held, &plan, seed)?,
            seconds,
        ));
    }

    println!("| | preference accuracy | mean reward of samples | samples on the data | seconds |");
    println!("|---|---|---|---|---|");
    for (name, row, seconds) in &rows {
        let (reward, on_data) = (row.reward, 100.0 * row.on_data);
        println!(
            "| {name} | {} | {reward:+.3} | {on_data:.1}% | {seconds:.1} |",
            row.preference
        );
    }
    let panels: Vec<_> = rows
        .iter()
        .map(|(name, row, _)| {
            let shown = &row.samples[..row.samples.len().min(400)];
            (*name, format!("mean reward {:+.2}", row.reward), shown)
        })
        .collect();
    plot::draw(&svg, &panels)?;
    println!("\nsamples: {}", svg.display());
    Ok(())
}
