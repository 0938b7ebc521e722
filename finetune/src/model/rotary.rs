//! Cosines and sines of rotary positions.

use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData};

use super::config::Rope;

/// Cosines and sines of tokens' positions, `[batch or 1, 1, time, head / 2]`.
pub(super) struct Rotary {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rotary {
    /// Those of `positions`, `[batch or 1, time]`, in the number type that is rotated.
    pub(super) fn new(
        positions: Tensor<2, Int>,
        rope: &Rope,
        head_dim: usize,
        dtype: DType,
    ) -> Self {
        let [batch, time] = positions.dims();
        let frequencies = frequencies(rope, head_dim);
        let half = frequencies.len();
        let frequencies = TensorData::new(frequencies, [1, 1, 1, half]);
        let device = positions.device();
        let frequencies = Tensor::<4>::from_data(frequencies, (&device, DType::F32));
        // A position of 16 bits would be rounded.
        let positions = positions.float().cast(FloatDType::F32);
        let angles = positions.reshape([batch, 1, time, 1]) * frequencies;
        let [cos, sin] = [angles.clone().cos(), angles.sin()].map(|x| x.cast(dtype));
        Self { cos, sin }
    }

    /// Turns each pair of numbers, half a head apart.
    pub(super) fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let [first, second]: [Tensor<4>; 2] = x.chunk(2, 3).try_into().expect("two halves");
        let (cos, sin) = (&self.cos, &self.sin);
        let turned = first.clone() * cos.clone() - second.clone() * sin.clone();
        let other = second * cos.clone() + first * sin.clone();
        Tensor::cat(vec![turned, other], 3)
    }
}

/// Radians a position, of each pair of numbers of a head.
fn frequencies(rope: &Rope, head_dim: usize) -> Vec<f32> {
    let frequency = |i: usize| {
        let plain = rope.theta.powf(-((2 * i) as f64) / head_dim as f64);
        let Some(scaling) = rope.scaling else {
            return plain;
        };
        // Turns in the context that the model was first trained for.
        let turns = scaling.original * plain / std::f64::consts::TAU;
        let high = (turns - scaling.low) / (scaling.high - scaling.low);
        let high = high.clamp(0.0, 1.0);
        high * plain + (1.0 - high) * plain / scaling.factor
    };
    #[allow(clippy::cast_possible_truncation, reason = "angles are f32")]
    let frequency = |i| frequency(i) as f32;
    (0..head_dim / 2).map(frequency).collect()
}
