//! What people see: progress, the table of held-out results, and the measures behind them.

use std::io::IsTerminal;
use std::time::Instant;

use burn_preference::InvalidInput;
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::llama::Llama;
use crate::rollout::{Batching, List, log_probs_of, rollout};
use crate::task::Task;

/// A bar on a terminal, a few plain lines elsewhere.
pub struct Progress {
    bar: ProgressBar,
    name: &'static str,
    steps: u64,
    start: Instant,
    plain: bool,
}

impl Progress {
    pub fn new(name: &'static str, steps: usize) -> Self {
        let steps = steps as u64;
        let plain = !std::io::stderr().is_terminal();
        let bar = if plain {
            ProgressBar::hidden()
        } else {
            ProgressBar::new(steps)
        };
        let template = "{prefix:>10} {bar:30} {pos:>4}/{len} {elapsed:>4}  {msg}";
        let style = ProgressStyle::with_template(template).expect("the template is valid");
        bar.set_style(style);
        bar.set_prefix(name);
        Self {
            bar,
            name,
            steps,
            start: Instant::now(),
            plain,
        }
    }

    /// One step more; `message` is asked for now and then only, since it may read from a device.
    pub fn step(&self, message: impl FnOnce() -> String) {
        self.bar.inc(1);
        let done = self.bar.position();
        if self.plain && done.is_multiple_of(self.steps.div_ceil(4)) || done == self.steps {
            let seconds = self.start.elapsed().as_secs_f64();
            let message = message();
            let line = format!(
                "{:>10} {done:>4}/{}  {message}  {seconds:.1} s",
                self.name, self.steps
            );
            self.bar.finish_and_clear();
            eprintln!("{line}");
        } else if done.is_multiple_of(10) {
            self.bar.set_message(message());
        }
    }
}

/// Held-out prompts with the base model's own completions of them.
pub struct Held<'a> {
    pub task: &'a dyn Task,
    pub lists: Vec<List>,
    pub base: Llama,
    pub seed: u64,
    pub batching: Batching,
}

/// Held-out results after some steps.
#[derive(Debug, Clone)]
pub struct Point {
    pub step: usize,
    /// Mean score of fresh samples.
    pub score: f64,
    /// Share of the base model's best/worst pairs with the better one ahead, by ρ.
    pub accuracy: f64,
    /// Mean ρ_w and ρ_l of these pairs, nats.
    pub chosen: f64,
    pub rejected: f64,
    /// Mean log π/π° of fresh samples, nats per completion.
    pub kl: f64,
}

impl Point {
    /// Mean ρ_w − ρ_l, nats.
    pub fn margin(&self) -> f64 {
        self.chosen - self.rejected
    }
}

impl Held<'_> {
    /// Measures a policy.
    pub fn measure(&self, step: usize, policy: &Llama) -> Result<Point, InvalidInput> {
        let (lists, count) = (&self.lists, self.lists.len());
        let prompts: Vec<_> = lists.iter().map(|list| list.prompt.clone()).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let fresh = rollout(policy, self.task, &prompts, 1, &mut rng);
        let ours = log_probs_of(policy, &fresh, &self.batching)?;
        let theirs = log_probs_of(&self.base, &fresh, &self.batching)?;
        let kl: f64 = ours
            .iter()
            .zip(&theirs)
            .map(|(a, b)| f64::from(a[0] - b[0]))
            .sum();
        let score: f64 = fresh.iter().map(List::mean_score).sum();

        let log_probs = log_probs_of(policy, lists, &self.batching)?;
        let ratios: Vec<(f64, f64)> = lists
            .iter()
            .zip(&log_probs)
            .filter_map(|(list, ours)| {
                let (best, worst) = list.pair()?;
                let ratio = |i: usize| f64::from(ours[i] - list.reference[i]);
                Some((ratio(best), ratio(worst)))
            })
            .collect();
        let pairs = ratios.len() as f64;
        let ahead = ratios.iter().filter(|(w, l)| w > l).count();
        Ok(Point {
            step,
            score: score / count as f64,
            accuracy: ahead as f64 / pairs,
            chosen: ratios.iter().map(|r| r.0).sum::<f64>() / pairs,
            rejected: ratios.iter().map(|r| r.1).sum::<f64>() / pairs,
            kl: kl / count as f64,
        })
    }

    /// One completion of the held-out prompt that the base model does worst on, for people.
    pub fn example(&self, policy: &Llama) -> String {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let by_score = |a: &&List, b: &&List| a.mean_score().total_cmp(&b.mean_score());
        let worst = self
            .lists
            .iter()
            .min_by(by_score)
            .expect("there are held-out prompts");
        let prompt = [worst.prompt.clone()];
        let list = &rollout(policy, self.task, &prompt, 1, &mut rng)[0];
        let completion = &list.candidates[0];
        format!(
            "{} │ {}",
            self.task.show(&list.prompt),
            self.task.show(completion)
        )
    }
}

/// The table before/after, in Markdown.
pub fn print_table(task: &dyn Task, before: &Point, after: &[(&'static str, Point, f64)]) {
    println!("\n{}, held-out prompts\n", task.name());
    println!("| | score | reward accuracy | margin, nats | KL to reference, nats | seconds |");
    println!("|---|---|---|---|---|---|");
    println!("| before | {:.3} | all ties | 0 | 0 | |", before.score);
    for (name, p, seconds) in after {
        let (score, margin, kl) = (p.score, p.margin(), p.kl);
        let accuracy = 100.0 * p.accuracy;
        println!("| {name} | {score:.3} | {accuracy:.1}% | {margin:.2} | {kl:.2} | {seconds:.1} |");
    }
}
