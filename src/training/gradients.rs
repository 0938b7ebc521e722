//! Clipping all gradients of a model together, as TRL does (`max_grad_norm`).
//!
//! Burn's optimisers clip each parameter by itself, which changes the direction of a step; a
//! global norm only changes its length. Reference hyperparameters of preference papers assume the
//! latter, mostly with a norm of 1.

use std::collections::HashSet;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, FloatDType, Tensor};

use crate::error::InvalidHyperparameter;
use crate::hyperparameter::positive;

/// Scales all gradients of `model` by min(1, `max_norm` / norm), where the norm is over all of
/// them together, and returns them with that norm, `[1]`, before clipping.
///
/// ```text
/// norm = √ Σ g²        over every element of every gradient, f32 at least
/// ```
///
/// Nothing is read back. Accumulated gradients are clipped once, when they are complete. A norm
/// that is NaN or ∞ makes every gradient NaN: a step that is lost should not look like one that is
/// merely short. Gradients may be on several devices; the norm is on the first one's. Without
/// gradients it is 0.
///
/// ```
/// use burn::nn::LinearConfig;
/// use burn::optim::GradientsParams;
/// use burn::tensor::{Device, Tensor};
/// use burn_preference::training::gradients::clip_by_global_norm;
///
/// let device = Device::default().autodiff();
/// let model = LinearConfig::new(1, 1).init(&device);
/// // ∂(3w + …)/∂w = 3 and ∂/∂b = 4: together a norm of 5.
/// let loss = model.forward(Tensor::<2>::from_floats([[3.0]], &device)).sum()
///     + model.bias.as_ref().unwrap().val().sum() * 3.0;
/// let grads = GradientsParams::from_grads(loss.backward(), &model);
/// let (grads, norm) = clip_by_global_norm(grads, &model, 1.0)?;
/// assert!((norm.into_scalar::<f32>() - 5.0).abs() < 1e-6);
/// let weight = grads.get::<2>(model.weight.id).unwrap().into_scalar::<f32>();
/// assert!((weight - 0.6).abs() < 1e-6);
/// # Ok::<(), burn_preference::Error>(())
/// ```
///
/// # Errors
///
/// `max_norm` is not a finite number > 0.
pub fn clip_by_global_norm<M: Module>(
    grads: GradientsParams,
    model: &M,
    max_norm: f64,
) -> Result<(GradientsParams, Tensor<1>), InvalidHyperparameter> {
    positive("max_norm", max_norm)?;
    let mut largest = PerGradient::new(&grads, |grad: Tensor<1>| grad.abs().max_dim(0));
    model.visit(&mut largest);
    let Some(largest) = largest.results.into_iter().reduce(Tensor::max_pair) else {
        return Ok((grads, Tensor::zeros([1], &Device::default())));
    };
    // Squares of what is at most 1 neither overflow nor vanish.
    let scale = largest.clone().mask_fill(largest.equal_elem(0.0), 1.0);
    let mut squares = PerGradient::new(&grads, |grad: Tensor<1>| {
        let scale = scale.clone().to_device(&grad.device()).cast(grad.dtype());
        (grad / scale).square().sum_dim(0)
    });
    model.visit(&mut squares);
    let sum = squares
        .results
        .into_iter()
        .fold(scale.zeros_like(), |a, b| a + b);
    let norm = sum.sqrt() * scale;

    let factor = (norm.clone().recip() * max_norm).clamp_max(1.0);
    let broken = norm.clone().is_nan().bool_or(norm.clone().is_inf());
    let mut clip = Clip {
        grads,
        factor: factor.mask_fill(broken, f64::NAN),
        seen: HashSet::new(),
    };
    model.visit(&mut clip);
    Ok((clip.grads, norm))
}

/// One number per gradient, each parameter once.
struct PerGradient<'a, F> {
    grads: &'a GradientsParams,
    seen: HashSet<ParamId>,
    number: F,
    results: Vec<Tensor<1>>,
}

impl<'a, F> PerGradient<'a, F> {
    fn new(grads: &'a GradientsParams, number: F) -> Self {
        Self {
            grads,
            seen: HashSet::new(),
            number,
            results: Vec::new(),
        }
    }
}

impl<F: Fn(Tensor<1>) -> Tensor<1>> ModuleVisitor for PerGradient<'_, F> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id)
            && self.seen.insert(param.id)
            && grad.shape().num_elements() > 0
        {
            let elements = grad.shape().num_elements();
            let grad = match grad.dtype() {
                DType::F64 => grad,
                _ => grad.cast(FloatDType::F32),
            };
            let mut result = (self.number)(grad.reshape([elements]));
            if let Some(first) = self.results.first() {
                result = result.to_device(&first.device()).cast(first.dtype());
            }
            self.results.push(result);
        }
    }
}

struct Clip {
    grads: GradientsParams,
    factor: Tensor<1>,
    seen: HashSet<ParamId>,
}

impl ModuleVisitor for Clip {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !self.seen.insert(param.id) {
            return;
        }
        if let Some(grad) = self.grads.remove::<D>(param.id) {
            let dtype = grad.dtype();
            let factor = self.factor.clone().to_device(&grad.device());
            // f16 has no digits for a small factor: the product is taken in the factor's type.
            let grad = grad.cast(factor.dtype()) * factor.unsqueeze();
            self.grads.register::<D>(param.id, grad.cast(dtype));
        }
    }
}
