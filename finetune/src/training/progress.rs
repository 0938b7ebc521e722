//! The progress of a run on a terminal.

use std::time::Duration;

use burn_preference::Metrics;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::ranks::speaks;
use crate::say;

/// A bar with tokens a second and the time that is left; where there is no terminal, some lines.
pub(super) struct Progress {
    bar: ProgressBar,
    every: u64,
    steps: Pace,
    /// None where nothing is measured.
    evaluations: Option<Pace>,
}

/// Equal parts of a run: those that are left, and the time of those that are done.
struct Pace {
    left: usize,
    done: u32,
    took: Duration,
}

impl Pace {
    fn new(left: usize) -> Self {
        Self {
            left,
            done: 0,
            took: Duration::ZERO,
        }
    }

    fn add(&mut self, took: Duration) {
        self.left = self.left.saturating_sub(1);
        self.done += 1;
        self.took += took;
    }

    /// The time that is left at the mean pace so far.
    fn left(&self) -> Duration {
        let left = u32::try_from(self.left).unwrap_or(u32::MAX);
        (self.took / self.done.max(1)).saturating_mul(left)
    }
}

impl Progress {
    /// A run of `steps`, of which some are done, with an evaluation after so many.
    pub(super) fn new(steps: usize, done: usize, evaluate_every: Option<usize>) -> Self {
        let bar = if speaks() {
            ProgressBar::new(steps as u64)
        } else {
            ProgressBar::hidden()
        };
        let bar = bar.with_position(done as u64);
        let template = "{bar:24} {pos}/{len}  {elapsed}, {msg}";
        bar.set_style(ProgressStyle::with_template(template).expect("the template is valid"));
        let evaluations = |every: usize| Pace::new(steps.div_ceil(every) - done / every);
        Self {
            bar,
            every: (steps as u64).div_ceil(10),
            steps: Pace::new(steps - done),
            evaluations: evaluate_every.map(evaluations),
        }
    }

    pub(super) fn step(&mut self, metrics: &Metrics, tokens_a_second: f64, took: Duration) {
        self.bar.inc(1);
        self.steps.add(took);
        let loss = metrics.get("loss").unwrap_or(f64::NAN);
        let accuracy = accuracy(metrics);
        let accuracy = accuracy.map_or(String::new(), |share| format!(", accuracy {share:.2}"));
        let text = format!("loss {loss:.4}{accuracy}, {tokens_a_second:.0} tokens/s");
        let left = self.evaluations.as_ref().map_or(Duration::ZERO, Pace::left);
        let left = HumanDuration(self.steps.left() + left);
        if self.bar.is_hidden() && self.bar.position().is_multiple_of(self.every) {
            say!("step {}: {text}, {left} left", self.bar.position());
        }
        self.bar.set_message(format!("{left} left  {text}"));
    }

    pub(super) fn measured(&mut self, step: usize, held: &Metrics, took: Duration) {
        if let Some(evaluations) = &mut self.evaluations {
            evaluations.add(took);
        }
        let accuracy = accuracy(held).map_or("–".to_owned(), |share| format!("{share:.4}"));
        let loss = held
            .get("loss")
            .map_or("–".to_owned(), |loss| format!("{loss:.4}"));
        let line = format!("step {step}: held out: loss {loss}, accuracy {accuracy}");
        self.bar.suspend(|| say!("{line}"));
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Of rewards, or where there are none of tokens.
fn accuracy(metrics: &Metrics) -> Option<f64> {
    let keys = ["rewards/accuracies", "mean_token_accuracy"];
    keys.iter().find_map(|key| metrics.get(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_counts_evaluations() {
        let mut progress = Progress::new(100, 20, Some(30));
        let second = Duration::from_secs(1);
        for _ in 0..30 {
            progress.step(&Metrics::default(), 1.0, second);
        }
        // After steps 30, 60, 90 and 100.
        progress.measured(30, &Metrics::default(), 10 * second);
        assert_eq!(progress.steps.left(), 50 * second);
        assert_eq!(progress.evaluations.unwrap().left(), 30 * second);
    }
}
