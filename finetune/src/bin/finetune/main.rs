//! From a model on disk to an aligned model on disk.
//!
//! ```console
//! cargo run --release -p finetune -- --model DIR --data pairs.jsonl --out aligned
//! ```
//!
//! `DIR` is a folder as Hugging Face lays it out, or a GGUF file; README.md beside this package
//! says the rest.

mod args;
mod on_policy;
mod report;
mod session;
mod settings;

use std::fs;
use std::process::ExitCode;

use burn::tensor::Device;
use burn_preference::config::{RewardObjective, UnpairedObjective};
use burn_preference::data::{Desirable, PairFormat, RankedFormat, UnpairedFormat};
use burn_preference::training::state::RunningMean;
use finetune::{
    Chat, ChosenObjective, DataOptions, Failure, Kto, OutputLayer, Splits, Unpaired, load_adapter,
    load_as,
};

use crate::args::Args;
use crate::session::Session;

fn main() -> ExitCode {
    match Args::checked().and_then(|args| run(&args)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode, Failure> {
    let device = device(&args.device)?;
    let mut base = load_as(args.dtype.dtype(), &args.model, &device)?;
    if let Some(folder) = &args.adapter {
        base = load_adapter(base, folder, &device)?.0.merged();
    }
    let chat = Chat::open(&args.model, base.config())?;
    let asked = args.max_length;
    let longest = base.config().window.unwrap_or(usize::MAX);
    if asked > longest {
        let what = "this model attends to a window of that many tokens, which is not implemented";
        return Err(format!("--max-length: at most {longest}: {what}").into());
    }
    if let Some(known) = base.config().positions.filter(|known| *known < asked) {
        println!("look: --max-length is {asked}, and the model was trained on {known} tokens");
    }
    let is_reward_model = base.config().output == OutputLayer::Reward;
    if let (Some(count), Some(judge)) = (args.sample, &args.score) {
        if is_reward_model {
            return Err("--model: a reward model has no words to answer with".into());
        }
        on_policy::write_pairs(args, &base, &chat, &device, count, judge)?;
        return Ok(ExitCode::SUCCESS);
    }
    let loss = fs::read_to_string(&args.loss).unwrap_or_else(|_| args.loss.clone());
    let objective = ChosenObjective::parse(&loss, DataOptions::is_unpaired(&args.data)?)
        .map_err(|error| format!("--loss {}: {error}", args.loss))?;
    if is_reward_model && !objective.learns_rewards() {
        return Err(
            "--model: a reward model has no words whose probability could be learnt".into(),
        );
    }
    let session = Session::new(args, base, chat, device, &objective, &loss)?;
    match objective {
        ChosenObjective::Pairs(objective) => {
            session.train(objective, session.read(PairFormat::default)?)
        }
        ChosenObjective::Unpaired(objective) => {
            let splits = session.read(UnpairedFormat::default)?;
            check_labels(&objective, &splits)?;
            if let UnpairedObjective::Kto(objective) = objective {
                let splits = args.data_options().mismatched(splits)?;
                return session.train(Kto::new(objective), splits);
            }
            let rewards = RunningMean::default();
            session.train(Unpaired { objective, rewards }, splits)
        }
        ChosenObjective::Ranked(objective) => {
            session.train(objective, session.read(RankedFormat::default)?)
        }
        ChosenObjective::Rewards(RewardObjective::BradleyTerry(objective)) => {
            session.train(objective, session.read(PairFormat::default)?)
        }
        ChosenObjective::Rewards(RewardObjective::RewardRanking(objective)) => {
            session.train(objective, session.read(RankedFormat::default)?)
        }
        ChosenObjective::Rewards(_) => {
            let what = "wants a column of ties, which is not read here";
            Err(format!("--loss {}: {what}", args.loss).into())
        }
    }
}

fn device(name: &str) -> Result<Device, Failure> {
    Ok(match name {
        "flex" => Device::flex(),
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "cuda")]
        "cuda" => Device::cuda(0),
        #[cfg(feature = "tch")]
        #[expect(deprecated, reason = "supported while it exists")]
        "tch" => Device::libtorch(),
        #[cfg(feature = "remote")]
        remote if remote.starts_with("ws://") => {
            let host = burn::remote::RemoteHost::websocket(remote);
            Device::remote_options(&host).init()?
        }
        other => {
            let what = "flex, or wgpu, cuda, tch or ws://HOST:PORT, built with --features wgpu, \
                        cuda, tch or remote";
            return Err(format!("--device: expected {what}; found {other}").into());
        }
    })
}

/// Checks that objectives that unlearn get no desirable completion.
fn check_labels(objective: &UnpairedObjective, splits: &Splits<Desirable>) -> Result<(), Failure> {
    let unlearns = matches!(
        objective,
        UnpairedObjective::Npo(_) | UnpairedObjective::Simnpo(_)
    );
    let mut examples = splits.train.iter().chain(&splits.held_out);
    match examples.find(|example| unlearns && example.label.0) {
        Some(example) => {
            let line = example.line.unwrap_or_default();
            let what = "a desirable completion, and this objective unlearns";
            Err(format!("line {line}: {what}").into())
        }
        None => Ok(()),
    }
}
