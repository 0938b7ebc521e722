//! Completions of a model: sampled, scored, and turned into tensors.

use burn::module::Module;
use burn::tensor::Device;
use burn_preference::tokens::{PackedBatch, Packing, Padding, Sequence, TokenBatch};
use burn_preference::{InvalidInput, SequenceLogProbs, TokenLogProbs};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::llama::{Llama, Visible};
use crate::task::Task;
use finetune::sampling::{Sampling, best_and_worst, draw_answers};

/// A prompt with several completions and the program's scores of them.
#[derive(Clone)]
pub struct List {
    pub prompt: Vec<usize>,
    pub candidates: Vec<Vec<usize>>,
    pub scores: Vec<f64>,
    /// log π° of each candidate: the reference never changes, so it is computed once.
    pub reference: Vec<f32>,
}

impl List {
    /// The best and the worst candidate, unless all have the same score.
    pub fn pair(&self) -> Option<(usize, usize)> {
        best_and_worst(&self.scores)
    }

    pub fn mean_score(&self) -> f64 {
        self.scores.iter().sum::<f64>() / self.scores.len() as f64
    }
}

/// Lists that have a best and a worst candidate, a batch at a time in an order that is drawn anew
/// when there is no whole batch left.
pub struct Batches<'a> {
    order: Vec<&'a List>,
    next: usize,
    size: usize,
}

impl<'a> Batches<'a> {
    pub fn new(lists: &'a [List], size: usize) -> Self {
        let order: Vec<_> = lists.iter().filter(|list| list.pair().is_some()).collect();
        Self {
            next: order.len(),
            order,
            size,
        }
    }

    pub fn next(&mut self, rng: &mut ChaCha8Rng) -> &[&'a List] {
        if self.next + self.size > self.order.len() {
            self.order.shuffle(rng);
            self.next = 0;
        }
        let start = self.next;
        self.next += self.size;
        &self.order[start..self.next.min(self.order.len())]
    }
}

/// Rows that go through the model at once.
const ROWS: usize = 128;

/// One completion per prompt at temperature 1. All prompts have the same length.
pub fn sample(
    model: &Llama,
    prompts: &[Vec<usize>],
    end: Option<usize>,
    max_completion: usize,
    rng: &mut ChaCha8Rng,
) -> Vec<Vec<usize>> {
    let model = model.valid();
    let device = model.devices()[0].clone();
    let ends: Vec<u32> = end.map(id).into_iter().collect();
    let sampling = Sampling {
        temperature: 1.0,
        max_tokens: max_completion,
    };
    let prompts: Vec<Vec<u32>> = prompts.iter().map(|prompt| ids(prompt)).collect();
    let completions = prompts.chunks(ROWS).flat_map(|prompts| {
        let (mut cache, mut start) = (vec![None; model.blocks.len()], 0);
        draw_answers(prompts, &ends, sampling, &device, rng, |tokens| {
            let [_, time] = tokens.dims();
            let logits = model.forward_cached(tokens, start, &mut cache);
            start += time;
            logits.narrow(1, time - 1, 1).squeeze_dim(1)
        })
    });
    completions
        .map(|ids| ids.into_iter().map(|id| id as usize).collect())
        .collect()
}

fn id(token: usize) -> u32 {
    u32::try_from(token).expect("a small vocabulary")
}

fn ids(tokens: &[usize]) -> Vec<u32> {
    tokens.iter().copied().map(id).collect()
}

/// `candidates` completions per prompt, scored.
pub fn rollout(
    model: &Llama,
    task: &dyn Task,
    prompts: &[Vec<usize>],
    candidates: usize,
    rng: &mut ChaCha8Rng,
) -> Vec<List> {
    let repeated: Vec<Vec<usize>> = prompts
        .iter()
        .flat_map(|prompt| std::iter::repeat_n(prompt.clone(), candidates))
        .collect();
    let completions = sample(
        model,
        &repeated,
        Some(task.end()),
        task.max_completion(),
        rng,
    );
    let lists = prompts.iter().zip(completions.chunks(candidates));
    lists
        .map(|(prompt, candidates)| List {
            prompt: prompt.clone(),
            scores: candidates.iter().map(|c| task.score(prompt, c)).collect(),
            candidates: candidates.to_vec(),
            reference: Vec::new(),
        })
        .collect()
}

/// How prompts and completions become rows.
#[derive(Debug, Clone)]
pub struct Batching {
    /// Each prompt once, with its completions in one row, instead of a row per completion.
    pub shared_prefix: bool,
    pub device: Device,
}

/// Prompts and completions as tokens.
pub enum TokenBatches {
    Padded(Box<TokenBatch>),
    Packed(Box<PackedBatch>),
}

fn sequences<'a>(rows: impl Iterator<Item = (&'a [usize], &'a [usize])>) -> Vec<Sequence> {
    rows.map(|(prompt, completion)| Sequence::new(&ids(prompt), &ids(completion)))
        .collect()
}

impl Batching {
    /// A row per completion, also with `shared_prefix`.
    pub fn padded<'a>(
        &self,
        rows: impl Iterator<Item = (&'a [usize], &'a [usize])>,
    ) -> Result<TokenBatch, InvalidInput> {
        TokenBatch::new(sequences(rows), Padding::new(0), &self.device)
    }

    pub fn tokens<'a>(
        &self,
        rows: impl Iterator<Item = (&'a [usize], &'a [usize])>,
    ) -> Result<TokenBatches, InvalidInput> {
        let (sequences, padding) = (sequences(rows), Padding::new(0));
        if !self.shared_prefix {
            let batch = TokenBatch::new(sequences, padding, &self.device)?;
            return Ok(TokenBatches::Padded(Box::new(batch)));
        }
        let packed = PackedBatch::new(sequences, Packing::new(padding), &self.device)?;
        Ok(TokenBatches::Packed(Box::new(packed)))
    }
}

impl TokenBatches {
    pub fn token_log_probs(&self, model: &Llama) -> Result<TokenLogProbs, InvalidInput> {
        match self {
            Self::Padded(batch) => batch.token_log_probs(model.forward(batch.ids.clone())),
            Self::Packed(batch) => {
                let (ids, positions) = (batch.ids.clone(), batch.positions.clone());
                let visible = Visible::Mask(batch.attention_mask());
                batch.token_log_probs(model.logits(model.hidden_packed(ids, positions, visible)))
            }
        }
    }

    pub fn log_probs(&self, model: &Llama) -> Result<SequenceLogProbs, InvalidInput> {
        Ok(self.token_log_probs(model)?.sequence())
    }
}

/// The log-probability of every candidate under a model that is not trained here.
pub fn log_probs_of(
    model: &Llama,
    lists: &[List],
    batching: &Batching,
) -> Result<Vec<Vec<f32>>, InvalidInput> {
    let model = model.valid();
    let mut sums = Vec::new();
    for lists in lists.chunks(ROWS / 4) {
        let rows = lists
            .iter()
            .flat_map(|l| l.candidates.iter().map(|c| (&l.prompt[..], &c[..])));
        let log_probs = batching.tokens(rows)?.log_probs(&model)?;
        let values: Vec<f32> = log_probs.sum().into_data().iter().collect();
        let mut values = values.into_iter();
        sums.extend(
            lists
                .iter()
                .map(|l| values.by_ref().take(l.candidates.len()).collect::<Vec<_>>()),
        );
    }
    Ok(sums)
}
