//! A denoising diffusion model of points in the plane (DDPM, 2006.11239).

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::gelu;
use burn::tensor::{Device, Tensor, TensorData};
use burn_preference::{InvalidInput, SequenceLogProbs};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::likelihood::log_probs;

pub type Point = [f32; 2];

/// Timesteps of the diffusion: the paper's T.
pub const STEPS: usize = 100;

/// Sines and cosines that tell the network where in time it is.
const FEATURES: usize = 8;

/// Predicts the noise in a point.
#[derive(Module, Debug)]
pub struct Denoiser {
    input: Linear,
    hidden: Vec<Linear>,
    output: Linear,
}

impl Denoiser {
    pub fn new(device: &Device) -> Self {
        let width = 96;
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        Self {
            input: linear(2 + FEATURES, width),
            hidden: vec![linear(width, width), linear(width, width)],
            output: linear(width, 2),
        }
    }

    /// ε̂ `[batch, 2]` of noised points beside their time, `[batch, 2 + features]`.
    fn forward(&self, points: Tensor<2>) -> Tensor<2> {
        let first = gelu(self.input.forward(points));
        let last = self.hidden.iter().fold(first, |x, layer| {
            let step = gelu(layer.forward(x.clone()));
            x + step
        });
        self.output.forward(last)
    }

    /// ℓ of every point, summed over its draws.
    pub fn log_probs(&self, noised: &Noised) -> Result<SequenceLogProbs, InvalidInput> {
        let device = self.input.weight.device();
        let rows = noised.noise.len() / noised.draws;
        let predicted = self.forward(on(&noised.points, &device));
        let noise = on(&noised.noise, &device);
        let [predicted, noise] = [predicted, noise].map(|x| x.reshape([rows, 2 * noised.draws]));
        log_probs(predicted, noise)
    }
}

fn on<const N: usize>(rows: &[[f32; N]], device: &Device) -> Tensor<2> {
    let data = TensorData::new(rows.as_flattened().to_vec(), [rows.len(), N]);
    Tensor::from_data(data, device)
}

/// Standard normal (Box and Muller).
pub fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let (u, v): (f32, f32) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

fn normals(rng: &mut ChaCha8Rng) -> Point {
    [normal(rng), normal(rng)]
}

/// How much noise there is at each timestep.
pub struct Schedule {
    /// β_t.
    betas: Vec<f32>,
    /// ᾱ_t = Π (1 − β_s).
    signal: Vec<f32>,
}

impl Schedule {
    pub fn new() -> Self {
        let rate = |t: usize| 1e-3 + (0.2 - 1e-3) * t as f32 / (STEPS - 1) as f32;
        let betas: Vec<f32> = (0..STEPS).map(rate).collect();
        let signal = betas.iter().scan(1.0, |product, beta| {
            *product *= 1.0 - beta;
            Some(*product)
        });
        Self {
            signal: signal.collect(),
            betas,
        }
    }

    /// x_t = √ᾱ_t·x + √(1 − ᾱ_t)·ε of every point under its draws, as many for each.
    pub fn noised(&self, points: &[Point], draws: &[Draw]) -> Noised {
        let each = draws.len() / points.len();
        let at = |(i, draw): (usize, &Draw)| {
            let (x, signal) = (points[i / each], self.signal[draw.timestep]);
            let mix = |i: usize| signal.sqrt() * x[i] + (1.0 - signal).sqrt() * draw.noise[i];
            with_time([mix(0), mix(1)], draw.timestep)
        };
        Noised {
            points: draws.iter().enumerate().map(at).collect(),
            noise: draws.iter().map(|draw| draw.noise).collect(),
            draws: each,
        }
    }

    /// `count` points of the model, from pure noise backwards through all timesteps.
    pub fn sample(&self, model: &Denoiser, count: usize, rng: &mut ChaCha8Rng) -> Vec<Point> {
        let model = model.valid();
        let device = model.input.weight.device();
        let mut points: Vec<Point> = (0..count).map(|_| normals(rng)).collect();
        for t in (0..STEPS).rev() {
            let rows: Vec<_> = points.iter().map(|&x| with_time(x, t)).collect();
            let predicted = model.forward(on(&rows, &device)).into_data();
            let predicted: Vec<f32> = predicted.iter().collect();
            let (beta, signal) = (self.betas[t], self.signal[t]);
            let noise = if t == 0 { 0.0 } else { beta.sqrt() };
            for (x, predicted) in points.iter_mut().zip(predicted.chunks_exact(2)) {
                for (x, predicted) in x.iter_mut().zip(predicted) {
                    let mean =
                        (*x - beta / (1.0 - signal).sqrt() * predicted) / (1.0 - beta).sqrt();
                    *x = mean + noise * normal(rng);
                }
            }
        }
        points
    }
}

fn with_time([x, y]: Point, t: usize) -> [f32; 2 + FEATURES] {
    let mut row = [x, y, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let time = std::f32::consts::PI * t as f32 / STEPS as f32;
    for (k, pair) in row[2..].chunks_exact_mut(2).enumerate() {
        let angle = time * (1 << k) as f32;
        (pair[0], pair[1]) = (angle.sin(), angle.cos());
    }
    row
}

/// A timestep and the noise of it. Policy and reference, chosen and rejected share one: what is
/// compared is then the points, not the luck of the draw.
#[derive(Clone, Copy)]
pub struct Draw {
    timestep: usize,
    noise: Point,
}

impl Draw {
    pub fn new(rng: &mut ChaCha8Rng) -> Self {
        Self {
            timestep: rng.random_range(0..STEPS),
            noise: normals(rng),
        }
    }
}

/// Points with noise and time, and the noise: a row per draw.
pub struct Noised {
    points: Vec<[f32; 2 + FEATURES]>,
    noise: Vec<Point>,
    /// Of each point.
    draws: usize,
}
