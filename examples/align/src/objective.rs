//! From rollouts to the loss of each of the five families: what a training loop plugs in.

use burn::module::Module;
use burn::tensor::{Bool, Tensor, TensorData};
use burn_preference::{
    BatchMetrics, DpoLossConfig, Frozen, InvalidInput, IpoLossConfig, KlEstimate, KtoLossConfig,
    Objective, OrpoLossConfig, Pair, Ranked, RrhfLossConfig, SequenceLogProbs, Unpaired,
    WithBaseline,
};
use clap::ValueEnum;

use crate::llama::Llama;
use crate::rollout::{Batching, List, TokenBatches};

/// The five families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Loss {
    Dpo,
    Ipo,
    Kto,
    Orpo,
    Rrhf,
}

/// Loss to call `backward` on, and what to log.
pub type Step = Result<(Tensor<1>, BatchMetrics), InvalidInput>;

impl Loss {
    pub const ALL: [Self; 5] = [Self::Dpo, Self::Ipo, Self::Kto, Self::Orpo, Self::Rrhf];

    pub fn name(self) -> &'static str {
        match self {
            Self::Dpo => "DPO",
            Self::Ipo => "IPO",
            Self::Kto => "KTO",
            Self::Orpo => "ORPO",
            Self::Rrhf => "RRHF",
        }
    }

    /// One forward of `policy` over some lists of candidates.
    pub fn step(
        self,
        policy: &Llama,
        reference: &Frozen<Llama>,
        lists: &[&List],
        batching: &Batching,
    ) -> Step {
        match self {
            Self::Dpo | Self::Ipo | Self::Orpo => self.pairs(policy, lists, batching),
            Self::Kto => kto(policy, reference, lists, batching),
            Self::Rrhf => rrhf(policy, lists, batching),
        }
    }

    /// Best against worst of each list, in one forward: `[chosen; rejected]`.
    fn pairs(self, policy: &Llama, lists: &[&List], batching: &Batching) -> Step {
        let pairs: Vec<_> = lists.iter().filter_map(|l| Some((*l, l.pair()?))).collect();
        let chosen = pairs.iter().map(|&(list, (best, _))| (list, best));
        let rejected = pairs.iter().map(|&(list, (_, worst))| (list, worst));
        let all: Vec<_> = chosen.chain(rejected).collect();
        let (rows, reference) = rows(&all, batching)?;
        let ours = rows.log_probs(policy)?;
        if self == Self::Orpo {
            let pair = Pair::from_concatenated(&ours)?;
            let orpo = OrpoLossConfig::new().with_odds_ratio_weight(0.5).init();
            let output = orpo.forward(pair.clone());
            let metrics = BatchMetrics::observe(&pair, &output).with_log_odds(&pair);
            return Ok((output.mean(), metrics));
        }
        let pair = Pair::from_concatenated(&ours.relative_to(reference)?)?;
        let output = if self == Self::Dpo {
            let dpo = DpoLossConfig::new().with_beta(0.5).init();
            dpo.forward(pair.clone())
        } else {
            // A target of 1/(2τ) = 1 nat per token: these completions are short.
            let ipo = IpoLossConfig::new().with_tau(0.5).init();
            ipo.forward(pair.clone())
        };
        Ok((output.mean(), BatchMetrics::observe(&pair, &output)))
    }
}

/// The best of each list is desirable, and the worst is not; z₀ comes from the completions of the
/// next prompt.
fn kto(policy: &Llama, reference: &Frozen<Llama>, lists: &[&List], batching: &Batching) -> Step {
    let pairs = lists.iter().filter_map(|l| Some((*l, l.pair()?)));
    let unpaired: Vec<_> = pairs
        .flat_map(|(list, (best, worst))| [(list, best, true), (list, worst, false)])
        .collect();
    let picked: Vec<_> = unpaired.iter().map(|&(list, i, _)| (list, i)).collect();
    let (own, reference_log_probs) = rows(&picked, batching)?;
    let relative = own.log_probs(policy)?.relative_to(reference_log_probs)?;

    let next = picked.iter().cycle().skip(2);
    let mismatched = picked.iter().zip(next);
    let mismatched = mismatched.map(|(&(x, _), &(y, i))| (&x.prompt[..], &y.candidates[i][..]));
    let mismatched = batching.tokens(mismatched)?;
    let ours = mismatched.log_probs(&policy.valid())?;
    let theirs = mismatched.log_probs(reference.model())?;
    let estimate = KlEstimate::from_mismatched(&ours.relative_to(theirs)?);

    let desirable: Vec<bool> = unpaired.iter().map(|&(.., good)| good).collect();
    let desirable =
        Tensor::<1, Bool>::from_data(TensorData::from(desirable.as_slice()), &batching.device);
    let batch = WithBaseline::new(Unpaired::new(relative, desirable)?, estimate.baseline())?;
    let output = KtoLossConfig::new()
        .with_beta(0.5)
        .init()
        .forward(batch.clone());
    Ok((output.mean(), BatchMetrics::observe(&batch, &output)))
}

/// The whole list, ranked by its scores.
fn rrhf(policy: &Llama, lists: &[&List], batching: &Batching) -> Step {
    let candidates = lists[0].candidates.len();
    let all: Vec<_> = lists
        .iter()
        .flat_map(|list| (0..candidates).map(move |i| (*list, i)))
        .collect();
    let (rows, _) = rows(&all, batching)?;
    let log_probs = rows.log_probs(policy)?.split_candidates(candidates)?;
    let scores: Vec<f64> = lists.iter().flat_map(|l| l.scores.clone()).collect();
    let shape = [lists.len(), candidates];
    let scores = Tensor::<2>::from_data(TensorData::new(scores, shape), &batching.device);
    let present = Tensor::<2, Bool>::from_data(
        TensorData::new(vec![true; all.len()], shape),
        &batching.device,
    );
    let batch = Ranked::new(log_probs, scores, present)?;
    let output = RrhfLossConfig::new().init().forward(batch.clone());
    Ok((output.mean(), BatchMetrics::observe(&batch, &output)))
}

/// Tokens of the picked candidates, and the reference's log-probs that were computed before.
fn rows(
    picked: &[(&List, usize)],
    batching: &Batching,
) -> Result<(TokenBatches, SequenceLogProbs), InvalidInput> {
    let texts = picked
        .iter()
        .map(|(list, i)| (&list.prompt[..], &list.candidates[*i][..]));
    let rows = batching.tokens(texts)?;
    let sums: Vec<f32> = picked.iter().map(|(l, i)| l.reference[*i]).collect();
    let length = |(list, i): &(&List, usize)| list.candidates[*i].len();
    let lengths: Vec<usize> = picked.iter().map(length).collect();
    let reference = SequenceLogProbs::from_values(&sums, &lengths, &batching.device)?;
    Ok((rows, reference))
}
