//! The progress of a run on a terminal.

use burn_preference::Metrics;
use indicatif::{ProgressBar, ProgressStyle};

use crate::ranks::speaks;
use crate::say;

/// A bar with tokens a second and the time that is left; where there is no terminal, some lines.
pub(super) struct Progress {
    bar: ProgressBar,
    every: u64,
}

impl Progress {
    pub(super) fn new(steps: usize, done: usize) -> Self {
        let bar = if speaks() {
            ProgressBar::new(steps as u64)
        } else {
            ProgressBar::hidden()
        };
        let bar = bar.with_position(done as u64);
        bar.reset_eta();
        let template = "{bar:24} {pos}/{len}  {elapsed}, {eta} left  {msg}";
        bar.set_style(ProgressStyle::with_template(template).expect("the template is valid"));
        Self {
            bar,
            every: (steps as u64).div_ceil(10),
        }
    }

    pub(super) fn step(&self, metrics: &Metrics, tokens_a_second: f64) {
        self.bar.inc(1);
        let loss = metrics.get("loss").unwrap_or(f64::NAN);
        let accuracy = accuracy(metrics);
        let accuracy = accuracy.map_or(String::new(), |share| format!(", accuracy {share:.2}"));
        let text = format!("loss {loss:.4}{accuracy}, {tokens_a_second:.0} tokens/s");
        if self.bar.is_hidden() && self.bar.position().is_multiple_of(self.every) {
            say!("step {}: {text}", self.bar.position());
        }
        self.bar.set_message(text);
    }

    pub(super) fn measured(&self, step: usize, held: &Metrics) {
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
