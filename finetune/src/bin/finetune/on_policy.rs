//! On-policy rows: the model answers, a judge scores, and best against worst, or all of them, become
//! rows.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::{Device, FloatDType};
use burn_preference::data::Object;
use finetune::{
    Answer, Chat, Claim, Decoder, Failure, Judge, OutputLayer, Prompt, best_pair, group, is_json,
    load_as, log_probs, remarks, write_whole,
};
use indicatif::ProgressBar;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::args::Args;

/// Answers every prompt `count` times and writes pairs or groups into `OUT.jsonl`, which appears when all of
/// them are there.
pub(crate) fn write_rows(
    args: &Args,
    model: &Decoder,
    chat: &Chat,
    device: &Device,
    count: usize,
    judge: &str,
) -> Result<(), Failure> {
    let to = &args.beside_out(".jsonl");
    let _claim = Claim::take(&args.out)?;
    if to.exists() {
        return Err(format!("--out: {} is there already", to.display()).into());
    }
    let judge = judge_of(args, judge, chat, device)?;
    let mut prompts = args.data_options().prompts(&args.data, chat)?;
    let (answering, all) = (args.answering(chat), prompts.len());
    let mut fits = Vec::new();
    for prompt in &prompts {
        fits.push(answering.fits(prompt)?);
    }
    let mut fits = fits.into_iter();
    prompts.retain(|_| fits.next().unwrap_or_default());
    if prompts.len() < all {
        let long = all - prompts.len();
        println!("look: {long} of {all} prompts are longer than --max-length, and not answered");
    }
    if prompts.is_empty() {
        return Err("--data: no prompt to answer".into());
    }
    look_for_columns(&prompts);
    let bar = ProgressBar::new(prompts.len() as u64).with_message("answers");
    let mut answers = Vec::new();
    for (i, prompt) in prompts.iter().enumerate() {
        // By the prompt: a file that is cut gives the same answers to those that are left.
        let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
        rng.set_stream(i as u64);
        answers.extend(answering.answer(model, prompt, count, &mut rng)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let is_cut = |answer: &&Answer| {
        let last = answer.ids.completion().last();
        !last.is_some_and(|last| chat.ends.contains(last))
    };
    let cut = answers.iter().filter(is_cut).count();
    if cut > 0 {
        let of = answers.len();
        println!(
            "look: {cut} of {of} answers were cut by --answer-tokens: learning from them teaches the \
             model to stop there"
        );
    }
    let most = args.max_length;
    let is_long = |answer: &&Answer| answer.ids.ids().len() > most;
    let long = answers.iter().filter(is_long).count();
    if args.every_answer && long > 0 {
        let of = answers.len();
        println!(
            "look: {long} of {of} answers with their prompts are longer than --max-length, {most}: \
             training on them needs a larger one"
        );
    }
    let scores = judge.scores(&answers);
    let scores = scores.map_err(|error| keep(args, &answers, &error))?;
    let each = answers.chunks(count).zip(scores.chunks(count));
    let what = if args.every_answer { "groups" } else { "pairs" };
    let batching = args.batching(chat, device, args.every_answer);
    let row = |(answers, scores): (&[Answer], &[f64])| -> Result<Option<Object>, Failure> {
        if args.every_answer {
            group(answers, scores, &log_probs(model, answers, &batching)?)
        } else {
            best_pair(answers, scores)
        }
    };
    let rows = each.filter_map(|each| row(each).transpose());
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    println!(
        "{} prompts, {} {what}; mean score {:.4}",
        prompts.len(),
        rows.len(),
        scores.iter().sum::<f64>() / scores.len() as f64
    );
    if rows.is_empty() {
        let what = "are one text or have one score: there is no pair";
        return Err(format!("the best and the worst answer to each prompt {what}").into());
    }
    write_lines(to, &rows)?;
    println!("{what}: {}", to.display());
    Ok(())
}

/// Names the columns that cannot be written as JSON.
fn look_for_columns(prompts: &[Prompt]) {
    let columns = prompts.iter().flat_map(|prompt| prompt.columns.iter());
    let left: BTreeMap<_, _> = columns.filter(|(_, value)| !is_json(value)).collect();
    for (name, value) in left {
        println!("look: the column `{name}` is left out of the rows: JSON does not have {value}");
    }
}

/// Writes lines of JSON into a file that appears when all of them are there.
fn write_lines(to: &Path, rows: &[Object]) -> Result<(), Failure> {
    write_whole(to, |scratch| {
        let mut lines = String::new();
        for row in rows {
            lines += &serde_json::to_string(row)?;
            lines.push('\n');
        }
        Ok(fs::write(scratch, lines).map_err(|error| format!("{}: {error}", to.display()))?)
    })
}

/// The judge has failed, and the answers took long: they stay in `OUT.answers.jsonl`.
fn keep(args: &Args, answers: &[Answer], error: &Failure) -> Failure {
    let to = args.beside_out(".answers.jsonl");
    let rows: Result<Vec<_>, _> = answers.iter().map(Answer::to_json).collect();
    match rows.and_then(|rows| write_lines(&to, &rows)) {
        Ok(()) => format!("{error}; the answers are in {}", to.display()).into(),
        Err(other) => format!("{error}; the answers could not be kept: {other}").into(),
    }
}

/// A folder is a reward model, anything else a command.
fn judge_of(args: &Args, judge: &str, chat: &Chat, device: &Device) -> Result<Judge, Failure> {
    let folder = Path::new(judge);
    if !folder.is_dir() {
        return Ok(Judge::Command(judge.to_owned()));
    }
    let model = load_as(FloatDType::F32, folder, device)?;
    if model.config().output != OutputLayer::Reward {
        return Err(format!("--score: {judge} is no reward model").into());
    }
    for remark in remarks(folder, &model)? {
        println!("look: {judge}: {remark}");
    }
    // Rewards are of token ids: both have to mean the same by them.
    if !chat.is_the_same(&Chat::open(folder, model.config())?) {
        return Err(format!("--score: {judge} has another tokenizer").into());
    }
    Ok(Judge::Model(
        Box::new(model),
        args.batching(chat, device, false),
    ))
}
