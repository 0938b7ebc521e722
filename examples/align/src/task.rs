//! What a completion is judged by: a program, so that nobody has to label anything.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// A task whose completions a program can score.
pub trait Task {
    /// A name for the report.
    fn name(&self) -> &str;
    /// Tokens that a completion has at most, its end included.
    fn max_completion(&self) -> usize;
    /// The token that ends a completion.
    fn end(&self) -> usize;
    /// In 0..=1, higher is better.
    fn score(&self, prompt: &[usize], completion: &[usize]) -> f64;
    /// For people.
    fn show(&self, tokens: &[usize]) -> String;
}

/// "Sort these digits": prompt `3 1 4 1 5 9 →`, completion `1 1 3 4 5 9 ■`.
pub struct Sorting;

pub const DIGITS: usize = 6;
const ARROW: usize = 10;
const END: usize = 11;
pub const VOCAB: usize = 12;

impl Sorting {
    pub fn prompt(rng: &mut ChaCha8Rng) -> Vec<usize> {
        let mut prompt: Vec<usize> = (0..DIGITS).map(|_| rng.random_range(0..10)).collect();
        prompt.push(ARROW);
        prompt
    }

    fn answer(prompt: &[usize]) -> Vec<usize> {
        let mut digits = prompt[..DIGITS].to_vec();
        digits.sort_unstable();
        digits.push(END);
        digits
    }

    /// What the base model learns from: an answer in which each digit is wrong at `noise`.
    pub fn demonstration(prompt: &[usize], noise: f64, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let mut answer = Self::answer(prompt);
        for digit in &mut answer[..DIGITS] {
            if rng.random::<f64>() < noise {
                *digit = rng.random_range(0..10);
            }
        }
        answer
    }
}

impl Task for Sorting {
    fn name(&self) -> &'static str {
        "sort six digits (share of right positions)"
    }

    fn max_completion(&self) -> usize {
        DIGITS + 1
    }

    fn end(&self) -> usize {
        END
    }

    fn score(&self, prompt: &[usize], completion: &[usize]) -> f64 {
        let answer = Self::answer(prompt);
        let right = answer
            .iter()
            .zip(completion)
            .filter(|(a, b)| a == b)
            .count();
        right as f64 / answer.len().max(completion.len()) as f64
    }

    fn show(&self, tokens: &[usize]) -> String {
        let text = |token: &usize| match *token {
            ARROW => "→".to_owned(),
            END => "■".to_owned(),
            digit => digit.to_string(),
        };
        tokens.iter().map(text).collect::<Vec<_>>().join(" ")
    }
}
