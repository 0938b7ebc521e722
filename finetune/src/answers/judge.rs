//! Judges of answers: a program of the user's, or a reward model.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::process::{Command, Stdio};

use super::answer::Answer;
use crate::failure::Failure;
use crate::model::Decoder;
use crate::training::{Batching, rewards};

/// A judge of answers.
pub enum Judge {
    /// A command of the shell: it reads a line of JSON an answer, `{"prompt": …, "completion": …}`
    /// with the other columns of the row, and writes a number a line, higher for better.
    Command(String),
    /// A reward model, such as this program trains with `--loss bradley_terry`.
    Model(Box<Decoder>, Batching),
}

impl Judge {
    /// Scores of the answers, in their order; higher is better.
    ///
    /// # Errors
    ///
    /// The program cannot be run, fails, or writes something other than one finite number a line;
    /// a score is not finite.
    pub fn scores(&self, answers: &[Answer]) -> Result<Vec<f64>, Failure> {
        let scores = match self {
            Self::Command(command) => by_command(command, answers)?,
            Self::Model(model, batching) => {
                let mut scores = Vec::new();
                for some in answers.chunks(8) {
                    let sequences = some.iter().map(|answer| answer.ids.clone()).collect();
                    let rewards = rewards(model, &batching.tokens(sequences)?)?;
                    scores.extend(rewards.try_into_data()?.iter::<f64>());
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
    let line = |answer: &Answer| Ok(format!("{}\n", serde_json::to_string(&answer.to_json()?)?));
    let lines = answers.iter().map(line);
    let lines = lines.collect::<Result<Vec<String>, Failure>>()?;
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
