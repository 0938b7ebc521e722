//! Who says which answer is better: a program of the user's, or a reward model.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::process::{Command, Stdio};

use burn_preference::data::{Message, Text};
use burn_preference::tokens::Sequence;
use serde_json::{Value, json};

use crate::chat::Failure;
use crate::decoder::Decoder;
use crate::objective::{Layout, rewards};
use crate::sampling::best_and_worst;

/// A judge of answers.
pub enum Judge {
    /// A command of the shell: it reads a line of JSON an answer, `{"prompt": …, "completion": …}`,
    /// and writes a number a line, higher for better.
    Command(String),
    /// A reward model, such as this program trains with `--loss bradley_terry`.
    Model(Box<Decoder>, Layout),
}

/// An answer to be judged.
#[derive(Debug, Clone)]
pub struct Answer {
    /// As the file has it.
    pub prompt: Text,
    /// What the model said.
    pub text: String,
    /// Prompt and answer as ids.
    pub ids: Sequence,
}

impl Answer {
    /// As a judge reads it.
    pub fn to_json(&self) -> Value {
        json!({"prompt": self.prompt, "completion": self.text})
    }
}

impl Judge {
    /// A score for each answer.
    ///
    /// # Errors
    ///
    /// The program cannot be run, fails, or writes something other than one finite number a line;
    /// a score is not finite.
    pub fn scores(&self, answers: &[Answer]) -> Result<Vec<f64>, Failure> {
        let scores = match self {
            Self::Command(command) => by_command(command, answers)?,
            Self::Model(model, layout) => {
                let mut scores = Vec::new();
                for some in answers.chunks(8) {
                    let rows = some.iter().map(|answer| answer.ids.clone()).collect();
                    let rewards = rewards(model, &layout.rows(rows)?)?;
                    scores.extend(rewards.into_data().iter::<f64>());
                }
                scores
            }
        };
        match scores.iter().position(|score| !score.is_finite()) {
            Some(i) => Err(format!("--score: answer {i} has the score {}", scores[i]).into()),
            None => Ok(scores),
        }
    }
}

fn by_command(command: &str, answers: &[Answer]) -> Result<Vec<f64>, Failure> {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().expect("piped");
    let lines: Vec<String> = answers
        .iter()
        .map(|answer| format!("{}\n", answer.to_json()))
        .collect();
    // A program may answer before it has read everything: write beside reading.
    let writer = std::thread::spawn(move || {
        lines
            .iter()
            .try_for_each(|line| input.write_all(line.as_bytes()))
    });
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let mut scores = Vec::new();
    for line in output.lines() {
        let line = line?;
        let score = line.trim().parse::<f64>();
        scores.push(score.map_err(|_| format!("--score: {line:?} is no number"))?);
    }
    let status = child.wait()?;
    let written = writer.join().map_err(|_| "the writer panicked")?;
    if !status.success() {
        return Err(format!("--score: the command ended with {status}").into());
    }
    if scores.len() != answers.len() {
        let (found, expected) = (scores.len(), answers.len());
        return Err(format!("--score: {found} numbers for {expected} answers").into());
    }
    match written {
        // It knew them without reading everything.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(scores),
    }
}

/// Best against worst of a prompt's answers, as a row of TRL's shape; none if all are equally good.
pub fn pair_of(answers: &[Answer], scores: &[f64]) -> Option<Value> {
    let (best, worst) = best_and_worst(scores)?;
    let side = |i: usize| match answers[i].prompt {
        Text::Conversation(_) => json!([Message::new("assistant", &answers[i].text)]),
        Text::Plain(_) => json!(answers[i].text),
    };
    Some(json!({
        "prompt": answers[best].prompt,
        "chosen": side(best),
        "rejected": side(worst),
        "chosen_score": scores[best],
        "rejected_score": scores[worst],
    }))
}
