//! Steps of a small model whose objectives need something of the whole step, for workers of all
//! kinds.

use std::sync::{Arc, Mutex};

use burn::data::dataloader::batcher::Batcher;
use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams, SgdConfig};
use burn::tensor::{Device, Tensor};
use burn_preference::tokens::{Padding, Sequence, TokenBatch};
use burn_preference::training::reducer::{Local, Reducer};
use burn_preference::training::state::RunningMean;
use burn_preference::{
    BcoLossConfig, DpoLossConfig, Frozen, KlEstimate, KtoLossConfig, NllNormalization, Objective,
    PolicyPair, ReferencedPair, RelativeLogProbs, SequenceLogProbs, SftTerm, Unpaired,
    WithBaseline, WithShift, WithStepTokens,
};

use super::bigram::Bigram;
use super::to_vec;

const VOCAB: u32 = 7;

fn bigram(device: &Device) -> Bigram {
    Bigram::new([VOCAB as usize, 4], 0, device)
}

fn log_probs(model: &Bigram, batch: &TokenBatch) -> SequenceLogProbs {
    batch.log_probs(model, Bigram::logits).unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Dpo,
    DpoWithTokenMeanSft,
    Kto,
    Bco,
}

/// δ of BCO with the number of the window that moved it last: the workers are threads that share
/// it, and all have the same global sums.
pub type Delta = Arc<Mutex<(usize, RunningMean)>>;

#[derive(Module, Debug)]
pub struct Model {
    pub policy: Bigram,
    pub reference: Frozen<Bigram>,
    #[module(skip)]
    pub kind: Kind,
    #[module(skip)]
    pub reducer: Arc<dyn Reducer>,
    #[module(skip)]
    pub delta: Delta,
}

/// Row `i` of the data set, as tensors: pairs, and prompts with another's completion.
#[derive(Debug, Clone)]
pub struct Rows {
    pub window: usize,
    pub pairs: TokenBatch,
    pub mismatched: TokenBatch,
}

/// A pair of unequal lengths; the window that it belongs to is part of the row.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub window: usize,
    pub i: u32,
}

fn sequence(prompt: u32, completion: u32) -> Sequence {
    let token = |t: u32| (completion * 3 + t * t) % VOCAB;
    let ids: Vec<u32> = (0..=completion % 3).map(token).collect();
    Sequence::new(&[prompt % VOCAB], &ids)
}

pub struct Collate;

impl Batcher<Row, Rows> for Collate {
    fn batch(&self, rows: Vec<Row>, device: &Device) -> Rows {
        let all = |of: fn(u32) -> Sequence| rows.iter().map(move |row| of(row.i));
        let chosen = all(|i| sequence(i, i));
        let rejected = all(|i| sequence(i, i + 11));
        let batch = |sequences| TokenBatch::new(sequences, Padding::new(0), device).unwrap();
        Rows {
            window: rows[0].window,
            pairs: batch(chosen.chain(rejected).collect()),
            mismatched: batch(all(|i| sequence(i, i + 5)).collect()),
        }
    }
}

/// What a loss needs of the whole window before its backward.
pub struct Window {
    pub pairs: f64,
    pub tokens: f64,
    pub kl: KlEstimate,
    /// Sum and count.
    pub rewards: Tensor<1>,
}

impl Window {
    pub fn merge(self, other: Self) -> Self {
        Self {
            pairs: self.pairs + other.pairs,
            tokens: self.tokens + other.tokens,
            kl: self.kl.merge(other.kl),
            rewards: self.rewards + other.rewards,
        }
    }

    pub fn reduced(self, reducer: &dyn Reducer) -> Self {
        let device = self.rewards.device();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count"
        )]
        let total = |local: f64| {
            reducer
                .total(local as usize, &device)
                .unwrap_or_else(|e| panic!("{e}"))
        };
        Self {
            pairs: total(self.pairs),
            tokens: total(self.tokens),
            kl: self.kl.reduced(reducer).unwrap(),
            rewards: reducer.sum(self.rewards).unwrap(),
        }
    }
}

pub const BETA: f64 = 0.7;

impl Model {
    pub fn new(kind: Kind, reducer: Arc<dyn Reducer>, device: &Device) -> Self {
        let policy = bigram(&device.clone().autodiff());
        // Another model, so that the first window has log-ratios.
        let mut reference = policy.clone();
        reference.head.weight = reference.head.weight.map(|w| w * 0.5);
        Self {
            reference: Frozen::new(&reference),
            policy,
            kind,
            reducer,
            delta: Arc::default(),
        }
    }

    pub fn ratios(&self, tokens: &TokenBatch) -> RelativeLogProbs {
        let reference = log_probs(self.reference.model(), tokens);
        log_probs(&self.policy, tokens)
            .relative_to(reference)
            .unwrap()
    }

    pub fn pairs(&self, rows: &Rows) -> ReferencedPair {
        let of =
            |model: &Bigram| PolicyPair::from_concatenated(&log_probs(model, &rows.pairs)).unwrap();
        of(&self.policy)
            .relative_to(of(self.reference.model()))
            .unwrap()
    }

    pub fn window(&self, rows: &Rows) -> Window {
        let pairs = rows.pairs.len() / 2;
        let chosen = rows.pairs.sequences[..pairs].iter();
        let rewards = self.ratios(&rows.pairs).log_ratio().without_autodiff() * BETA;
        let count = rewards.ones_like().sum_dim(0);
        Window {
            pairs: pairs as f64,
            tokens: chosen.map(|s| s.completion().len()).sum::<usize>() as f64,
            kl: KlEstimate::from_mismatched(&self.ratios(&rows.mismatched)),
            rewards: Tensor::cat(vec![rewards.sum_dim(0), count], 0),
        }
    }

    /// This batch's share of the window's loss.
    pub fn loss(&self, rows: &Rows, window: &Window) -> Tensor<1> {
        let pairs = self.pairs(rows);
        match self.kind {
            Kind::Dpo => {
                let dpo = DpoLossConfig::new().with_beta(BETA).init();
                dpo.forward(pairs).normalized_by(window.pairs).unwrap()
            }
            Kind::DpoWithTokenMeanSft => {
                let dpo = DpoLossConfig::new().with_beta(BETA).init();
                let sft = SftTerm::new(dpo, 0.3).unwrap();
                let sft = sft.with_normalization(NllNormalization::Token);
                let batch = WithStepTokens::new(pairs, window.tokens, window.pairs).unwrap();
                sft.forward(batch).normalized_by(window.pairs).unwrap()
            }
            Kind::Kto => {
                let desirable = (0..rows.pairs.len()).map(|i| i < rows.pairs.len() / 2);
                let desirable: Vec<bool> = desirable.collect();
                let ratios = self.ratios(&rows.pairs);
                let desirable =
                    Tensor::from_data(desirable.as_slice(), &pairs.chosen.policy().sum().device());
                let batch = Unpaired::new(ratios, desirable).unwrap();
                let batch = WithBaseline::new(batch, window.kl.baseline()).unwrap();
                let kto = KtoLossConfig::new().with_beta(BETA).init();
                kto.forward(batch)
                    .normalized_by(2.0 * window.pairs)
                    .unwrap()
            }
            Kind::Bco => {
                let delta = {
                    let mut delta = self.delta.lock().unwrap();
                    if delta.0 <= rows.window {
                        let sums = to_vec(window.rewards.clone());
                        delta.1.update(sums[0], sums[1]);
                        delta.0 = rows.window + 1;
                    }
                    delta.1
                };
                let shift = delta.tensor(&pairs.chosen.policy().sum().device().inner());
                let batch = WithShift::new(pairs, shift).unwrap();
                let bco = BcoLossConfig::new().with_beta(BETA).init();
                bco.forward(batch).normalized_by(window.pairs).unwrap()
            }
        }
    }

    pub fn numbers(&self) -> Vec<f64> {
        let weights = [&self.policy.embedding.weight, &self.policy.head.weight];
        weights.into_iter().flat_map(|w| to_vec(w.val())).collect()
    }
}

pub const WINDOWS: usize = 3;
pub const RATE: f64 = 0.5;

/// Each window is cut into batches of these sizes, one after the other, their gradients added.
pub fn accumulated(kind: Kind, sizes: &[usize], device: &Device) -> Vec<f64> {
    let mut model = Model::new(kind, Arc::new(Local), device);
    let mut optimizer = SgdConfig::new().init();
    for window in 0..WINDOWS {
        let rows: Vec<Row> = rows_of(window);
        let mut start = 0;
        let cut = |size: &usize| {
            let part = rows[start..start + size].to_vec();
            start += size;
            Collate.batch(part, device)
        };
        let batches: Vec<Rows> = sizes.iter().map(cut).collect();
        let parts = batches.iter().map(|rows| model.window(rows));
        let whole = parts.reduce(Window::merge).unwrap();
        let mut accumulator = GradientsAccumulator::new();
        for rows in &batches {
            let grads = model.loss(rows, &whole).backward();
            accumulator.accumulate(&model, GradientsParams::from_grads(grads, &model));
        }
        model = optimizer.step(RATE, model, accumulator.grads());
    }
    model.numbers()
}

/// Eight rows a window.
pub fn rows_of(window: usize) -> Vec<Row> {
    let first = 8 * u32::try_from(window).unwrap();
    (first..first + 8).map(|i| Row { window, i }).collect()
}

pub const KINDS: [Kind; 4] = [Kind::Dpo, Kind::DpoWithTokenMeanSft, Kind::Kto, Kind::Bco];
