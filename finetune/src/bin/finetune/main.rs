//! From a model on disk to an aligned model on disk.
//!
//! ```console
//! cargo run --release -p finetune -- --model DIR --data pairs.jsonl --out aligned
//! ```
//!
//! `DIR` is a folder as Hugging Face lays it out, or a GGUF file; README.md beside this package
//! says the rest.

mod args;
mod card;
mod objective;
mod on_policy;
mod options_file;
mod report;
mod session;
mod settings;
mod sources;

use std::process::ExitCode;
use std::time::Duration;

use burn::tensor::{Device, Tensor};
use burn_preference::data::{Desirable, PairTokens, RankedTokens, UnpairedTokens};
use burn_preference::needs::{ColumnKind, Examples, Values};
use burn_preference::{RelativeLogProbs, SequenceLogProbs};
use finetune::{
    Chat, DataOptions, Failure, OnSamples, OutputLayer, Plain, Ranks, RowKind, Splits,
    WithKlEstimate, WithRewardShift, WithTokenCount, completions, demonstrations, load_adapter,
    load_as, remarks, reward_lists, samples, samples_against, say,
};

use crate::args::Args;
use crate::objective::ChosenObjective;
use crate::session::Session;
use crate::sources::Sources;

fn main() -> ExitCode {
    let run = || {
        let args = Args::checked()?;
        #[cfg(feature = "mpi")]
        let timeout = Duration::from_secs(args.timeout);
        #[cfg(not(feature = "mpi"))]
        let timeout = Duration::ZERO;
        let ranks = Ranks::join(timeout)?;
        let code = run(&args, &ranks)?;
        ranks.finish()?;
        Ok::<_, Failure>(code)
    };
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, ranks: &Ranks) -> Result<ExitCode, Failure> {
    if ranks.are_several() && args.sample.is_some() {
        return Err("--sample: answers are drawn by one process".into());
    }
    let device = device(&args.device, ranks.local_rank())?;
    let sources = Sources::find(args)?;
    let mut base = load_as(args.dtype.dtype(), &sources.model.path, &device)?;
    for remark in remarks(&sources.model.path, &base)? {
        say!("look: {remark}");
    }
    if let Some(adapter) = &sources.adapter {
        base = load_adapter(base, &adapter.path, &device)?.merged();
    }
    let chat = Chat::open(&sources.model.path, base.config())?;
    let asked = args.max_length;
    let longest = base.config().window.unwrap_or(usize::MAX);
    if asked > longest {
        let what = "this model attends to a window of that many tokens, which is not implemented";
        return Err(format!("--max-length: at most {longest}: {what}").into());
    }
    if let Some(known) = base.config().positions.filter(|known| *known < asked) {
        say!("look: --max-length is {asked}, and the model was trained on {known} tokens");
    }
    let is_reward_model = base.config().output == OutputLayer::Reward;
    if let (Some(count), Some(judge)) = (args.sample, &args.score) {
        if is_reward_model {
            return Err("--model: a reward model has no words to answer with".into());
        }
        on_policy::write_rows(args, &base, &chat, &device, count, judge)?;
        return Ok(ExitCode::SUCCESS);
    }
    let kind = args.data_options().kind(&args.data[0].path)?;
    let objective = ChosenObjective::read(&args.loss, kind == Some(RowKind::Unpaired))
        .map_err(|error| format!("--loss {}: {error}", args.loss))?;
    if is_reward_model && !objective.learns_rewards() {
        return Err(
            "--model: a reward model has no words whose probability could be learnt".into(),
        );
    }
    train(&Session::new(
        args, sources, base, chat, device, objective, ranks,
    )?)
}

/// Trains the objective on examples of the kind that it needs.
fn train(session: &Session<'_>) -> Result<ExitCode, Failure> {
    type Tokens = UnpairedTokens;
    let (config, needs) = (&session.objective.config, &session.objective.needs);
    let pairs = || session.read(DataOptions::pairs);
    let unpaired = || session.read(DataOptions::unpaired);
    let ranked = || session.read(DataOptions::ranked);
    match (needs.examples, needs.values, needs.columns.as_slice()) {
        (Examples::Pairs, Values::LogRatios, []) => session.train(
            Plain::new(config, PairTokens::pair::<RelativeLogProbs>)?,
            pairs()?,
        ),
        (Examples::Pairs, Values::LogProbs, []) => session.train(
            Plain::new(config, PairTokens::pair::<SequenceLogProbs>)?,
            pairs()?,
        ),
        (Examples::Pairs, Values::LogRatios, [ColumnKind::StepTokens]) => session.train(
            WithTokenCount::new(config, PairTokens::pair::<RelativeLogProbs>)?,
            pairs()?,
        ),
        (Examples::Pairs, Values::LogProbs, [ColumnKind::StepTokens]) => session.train(
            WithTokenCount::new(config, PairTokens::pair::<SequenceLogProbs>)?,
            pairs()?,
        ),
        (Examples::Pairs, Values::Rewards, []) => {
            session.train(Plain::new(config, PairTokens::pair::<Tensor<1>>)?, pairs()?)
        }
        (Examples::Unpaired, Values::LogRatios, []) => session.train(
            Plain::new(config, Tokens::unpaired::<RelativeLogProbs>)?,
            unpaired()?,
        ),
        (Examples::Unpaired, Values::LogRatios, [ColumnKind::Baseline]) => {
            let splits = session.data_options().mismatched(unpaired()?)?;
            session.train(WithKlEstimate::new(config)?, splits)
        }
        (Examples::Unpaired, Values::LogRatios, [ColumnKind::Shift]) => {
            session.train(WithRewardShift::new(config)?, unpaired()?)
        }
        (Examples::Demonstrations, Values::LogProbs, [ColumnKind::StepTokens]) => {
            let splits = session.read(DataOptions::demonstrations)?;
            session.train(WithTokenCount::new(config, demonstrations)?, splits)
        }
        (Examples::Samples, Values::LogProbs, [ColumnKind::StepTokens]) => {
            session.train(OnSamples::new(config, samples)?, session.read_samples()?)
        }
        (Examples::Samples, Values::LogRatios, [ColumnKind::StepTokens]) => session.train(
            OnSamples::new(config, samples_against)?,
            session.read_samples()?,
        ),
        (Examples::Completions, Values::LogRatios, []) => {
            let splits = undesirable(unpaired()?)?;
            session.train(Plain::new(config, completions::<RelativeLogProbs>)?, splits)
        }
        (Examples::Completions, Values::LogProbs, []) => {
            let splits = undesirable(unpaired()?)?;
            session.train(Plain::new(config, completions::<SequenceLogProbs>)?, splits)
        }
        (Examples::Ranked, Values::LogRatios, []) => session.train(
            Plain::new(config, RankedTokens::ranked::<RelativeLogProbs>)?,
            ranked()?,
        ),
        (Examples::Ranked, Values::LogProbs, []) => session.train(
            Plain::new(config, RankedTokens::ranked::<SequenceLogProbs>)?,
            ranked()?,
        ),
        (Examples::Ranked, Values::Rewards, []) => {
            session.train(Plain::new(config, reward_lists)?, ranked()?)
        }
        _ => Err(format!("--loss: {needs}: no batch that is made here").into()),
    }
}

/// The device of this process. Several processes of a machine take a GPU each, by their numbers.
fn device(name: &str, number: usize) -> Result<Device, Failure> {
    if name == "wgpu" && number > 0 {
        return Err("--device wgpu: one process of a machine".into());
    }
    Ok(match name {
        "flex" => Device::flex(),
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "cuda")]
        "cuda" => Device::cuda(number),
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

/// Checks that examples to unlearn are undesirable.
fn undesirable(splits: Splits<Desirable>) -> Result<Splits<Desirable>, Failure> {
    let mut examples = splits.train.iter().chain(&splits.held_out);
    if let Some(example) = examples.find(|example| example.label.0) {
        let line = example.line.unwrap_or_default();
        let what = "a desirable completion, and this objective unlearns";
        return Err(format!("line {line}: {what}").into());
    }
    Ok(splits)
}
