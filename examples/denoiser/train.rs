//! Fitting the denoiser, and aligning a copy of it.

use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Bool, Device, Tensor};
use burn_preference::{
    BatchMetrics, DpoLossConfig, Error, Frozen, KlEstimate, KtoLossConfig, Metrics, Objective,
    Pair, RelativeLogProbs, Unpaired, WithBaseline,
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::model::{Denoiser, Draw, Point, STEPS, Schedule, normal};

/// Reward per nat of log-ratio, of all timesteps together.
const BETA: f64 = 0.5;

/// What the log-ratio of one timestep is multiplied by: the paper's β·T, since one timestep stands
/// for the sum over T of them.
pub const SCALE: f64 = BETA * STEPS as f64;

/// How long everything runs.
#[derive(Debug, Clone)]
pub struct Plan {
    pub base_steps: usize,
    pub pairs: usize,
    pub held_out: usize,
    pub steps: usize,
    pub batch: usize,
    /// Draws of noise and timestep that a held-out pair is judged by.
    pub draws: usize,
    pub samples: usize,
}

/// A point preferred to another one.
#[derive(Clone, Copy)]
pub struct Preference {
    pub chosen: Point,
    pub rejected: Point,
}

/// Gaussians of the data, and their deviation.
const CLOUDS: u8 = 6;
const DEVIATION: f32 = 0.2;

/// They stand on a circle of radius 2.
fn data(rng: &mut ChaCha8Rng) -> Point {
    let angle = std::f32::consts::TAU * f32::from(rng.random_range(0..CLOUDS)) / f32::from(CLOUDS);
    [angle.cos(), angle.sin()].map(|x| 2.0 * x + DEVIATION * normal(rng))
}

/// Whether a point lies within three deviations of one of them.
pub fn on_data([x, y]: Point) -> bool {
    let apart = std::f32::consts::TAU / f32::from(CLOUDS);
    let angle = (y.atan2(x) / apart).round() * apart;
    (x - 2.0 * angle.cos()).hypot(y - 2.0 * angle.sin()) < 3.0 * DEVIATION
}

/// What the judge likes: height.
pub fn reward(point: Point) -> f32 {
    point[1]
}

/// AdamW with the ε of PyTorch: Burn's 1e-5 shortens the steps of small gradients.
fn optimizer() -> ModuleOptimizer {
    let config = AdamWConfig::new().with_epsilon(1e-8);
    config.with_weight_decay(0.0).init()
}

/// Fits the denoiser to the data.
pub fn base_model(
    plan: &Plan,
    schedule: &Schedule,
    device: &Device,
    rng: &mut ChaCha8Rng,
) -> Result<Denoiser, Error> {
    let mut model = Denoiser::new(&device.clone().autodiff());
    let mut optimizer = optimizer();
    for step in 0..plan.base_steps {
        let points: Vec<Point> = (0..256).map(|_| data(rng)).collect();
        let draws: Vec<Draw> = points.iter().map(|_| Draw::new(rng)).collect();
        let loss = -model
            .log_probs(&schedule.noised(&points, &draws))?
            .mean()
            .mean();
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        let left = 1.0 - step as f64 / plan.base_steps as f64;
        model = optimizer.step(4e-3 * left, model, grads);
    }
    Ok(model)
}

/// Pairs of the model's own samples, labelled by a judge who prefers the higher one, with the
/// noise of Bradley and Terry.
pub fn preferences(samples: &[Point], rng: &mut ChaCha8Rng) -> Vec<Preference> {
    let label = |pair: &[Point]| {
        let [a, b] = [pair[0], pair[1]];
        let probability = 1.0 / (1.0 + (-2.0 * (reward(a) - reward(b))).exp());
        let first = rng.random::<f32>() < probability;
        let (chosen, rejected) = if first { (a, b) } else { (b, a) };
        Preference { chosen, rejected }
    };
    samples.chunks_exact(2).map(label).collect()
}

#[derive(Debug, Clone, Copy)]
pub enum Loss {
    /// Diffusion-DPO (2311.12908, Eq. 14).
    Dpo,
    /// Diffusion-KTO (2404.04465): each point by itself, with a label.
    Kto,
}

/// ρ of the points, chosen ones first, under shared draws.
fn log_ratios(
    policy: &Denoiser,
    reference: &Frozen<Denoiser>,
    schedule: &Schedule,
    pairs: &[Preference],
    draws: &[Draw],
) -> Result<RelativeLogProbs, Error> {
    let chosen = pairs.iter().map(|pair| pair.chosen);
    let points: Vec<Point> = chosen
        .chain(pairs.iter().map(|pair| pair.rejected))
        .collect();
    let noised = schedule.noised(&points, &[draws, draws].concat());
    let theirs = reference.model().log_probs(&noised)?;
    Ok(policy.log_probs(&noised)?.relative_to(theirs)?)
}

/// Aligns a copy of `base`.
pub fn align(
    loss: Loss,
    base: &Denoiser,
    schedule: &Schedule,
    pairs: &[Preference],
    plan: &Plan,
    rng: &mut ChaCha8Rng,
) -> Result<Denoiser, Error> {
    let reference = Frozen::new(base);
    let mut policy = base.clone();
    let mut optimizer = optimizer();
    let dpo = DpoLossConfig::new().with_beta(SCALE).init();
    let kto = KtoLossConfig::new().with_beta(SCALE).init();
    for step in 0..plan.steps {
        let pick = |_| pairs[rng.random_range(0..pairs.len())];
        let batch: Vec<Preference> = (0..plan.batch).map(pick).collect();
        let draws: Vec<Draw> = batch.iter().map(|_| Draw::new(rng)).collect();
        let relative = log_ratios(&policy, &reference, schedule, &batch, &draws)?;
        let loss = match loss {
            Loss::Dpo => dpo.forward(Pair::from_concatenated(&relative)?).mean(),
            Loss::Kto => {
                // There is no prompt, so that every point is a mismatched completion.
                let baseline = KlEstimate::from_mismatched(&relative).baseline();
                let desirable: Vec<bool> = (0..2 * batch.len()).map(|i| i < batch.len()).collect();
                let desirable = Tensor::<1, Bool>::from_bool(&desirable[..], &baseline.device());
                let batch = Unpaired::new(relative, desirable)?;
                kto.forward(WithBaseline::new(batch, baseline)?).mean()
            }
        };
        let grads = GradientsParams::from_grads(loss.backward(), &policy);
        let left = 1.0 - step as f64 / plan.steps as f64;
        policy = optimizer.step(3e-4 * left, policy, grads);
    }
    Ok(policy)
}

/// Metrics of held-out pairs, each under several draws.
pub fn held_out(
    policy: &Denoiser,
    base: &Denoiser,
    schedule: &Schedule,
    pairs: &[Preference],
    plan: &Plan,
    rng: &mut ChaCha8Rng,
) -> Result<Metrics, Error> {
    let draws = (0..pairs.len() * plan.draws)
        .map(|_| Draw::new(rng))
        .collect::<Vec<_>>();
    let relative = log_ratios(&policy.valid(), &Frozen::new(base), schedule, pairs, &draws)?;
    let batch = Pair::from_concatenated(&relative)?;
    // Of the mean over the draws.
    let dpo = DpoLossConfig::new().with_beta(SCALE / plan.draws as f64);
    let output = dpo.init().forward(batch.clone());
    Ok(BatchMetrics::observe(&batch, &output).read()?)
}
