//! A judge that learned from pairs: the base model with a head of one number.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn_preference::tokens::TokenBatch;
use burn_preference::{BatchMetrics, BradleyTerryLossConfig, InvalidInput, Objective, RewardPair};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::llama::Llama;
use crate::report::Progress;
use crate::rollout::{Batches, Batching, List};
use crate::train::{Plan, optimizer};

/// What the head rewards at the last token of a row is its reward.
#[derive(Module, Debug)]
pub struct RewardModel {
    body: Llama,
    head: Linear,
}

/// Rows that are judged at once.
const ROWS: usize = 128;

impl RewardModel {
    fn new(base: &Llama) -> Self {
        let body = base.clone().train();
        let [_, dim] = body.embedding.weight.dims();
        let head = LinearConfig::new(dim, 1).with_bias(false);
        Self {
            head: head.init(&body.embedding.weight.device()),
            body,
        }
    }

    fn rewards(&self, rows: &TokenBatch) -> Result<Tensor<1>, InvalidInput> {
        let values = self.head.forward(self.body.hidden(rows.ids.clone()));
        rows.at_end(values.squeeze_dim(2))
    }

    /// Learns which completion of a pair is the better one.
    pub fn fit(
        base: &Llama,
        lists: &[List],
        plan: &Plan,
        seed: u64,
        batching: &Batching,
    ) -> Result<Self, InvalidInput> {
        batching.device.seed(seed);
        let mut model = Self::new(base);
        // Only differences are learned: the last term keeps the level near 0.
        let objective = BradleyTerryLossConfig::new().with_centering_weight(0.01);
        let objective = objective.init();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut optimizer = optimizer();
        let mut batches = Batches::new(lists, plan.batch);
        let progress = Progress::new("judge", plan.judge_steps);
        for step in 0..plan.judge_steps {
            let lists = batches.next(&mut rng);
            let rewards = pairs(&model, lists, batching)?;
            let output = objective.forward(rewards.clone());
            let grads = GradientsParams::from_grads(output.mean().backward(), &model);
            let left = 1.0 - step as f64 / plan.judge_steps as f64;
            model = optimizer.step(1e-3 * left, model, grads);
            progress.step(|| {
                let metrics = BatchMetrics::observe(&rewards, &output);
                let metrics = metrics.read().expect("the device works");
                let of = |key| metrics.get(key).unwrap_or(f64::NAN);
                let (loss, accuracy) = (of("loss"), of("rewards/accuracies"));
                format!("loss {loss:.3}  accuracy {accuracy:.2}")
            });
        }
        Ok(model.valid())
    }

    /// Share of the best/worst pairs, as the program has them, whose better one is ahead.
    pub fn accuracy(&self, lists: &[List], batching: &Batching) -> Result<f64, InvalidInput> {
        let lists: Vec<&List> = lists.iter().filter(|list| list.pair().is_some()).collect();
        let mut all = BatchMetrics::default();
        for lists in lists.chunks(ROWS / 2) {
            let rewards = pairs(self, lists, batching)?;
            let output = BradleyTerryLossConfig::new()
                .init()
                .forward(rewards.clone());
            all = all.merge(BatchMetrics::observe(&rewards, &output));
        }
        let metrics = all.read().expect("the device works");
        Ok(metrics.get("rewards/accuracies").unwrap_or(f64::NAN))
    }

    /// The same lists, with rewards instead of the program's scores.
    pub fn judge(
        &self,
        mut lists: Vec<List>,
        batching: &Batching,
    ) -> Result<Vec<List>, InvalidInput> {
        for list in &mut lists {
            let rows = list.candidates.iter().map(|c| (&list.prompt[..], &c[..]));
            let rewards = self.rewards(&batching.padded(rows)?)?;
            list.scores = rewards.into_data().iter().collect();
        }
        Ok(lists)
    }
}

/// Best against worst of each list, in one forward: `[chosen; rejected]`.
fn pairs(
    model: &RewardModel,
    lists: &[&List],
    batching: &Batching,
) -> Result<RewardPair, InvalidInput> {
    let pairs = lists.iter().filter_map(|list| Some((*list, list.pair()?)));
    let pairs: Vec<_> = pairs.collect();
    let chosen = pairs.iter().map(|&(list, (best, _))| (list, best));
    let rejected = pairs.iter().map(|&(list, (_, worst))| (list, worst));
    let rows = chosen.chain(rejected);
    let rows = rows.map(|(list, i)| (&list.prompt[..], &list.candidates[i][..]));
    RewardPair::from_concatenated(&model.rewards(&batching.padded(rows)?)?)
}
