//! All gradients of a model together: clipped, as TRL does (`max_grad_norm`), or summed over workers.
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
use crate::training::reducer::{ReduceError, Reducer, sum_numbers};

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

/// Numbers that are summed at once, unless one gradient has more: 64 MiB in f32.
const AT_ONCE: usize = 1 << 24;

/// Σ over the workers of the gradients of `model`, which all of them have a copy of.
///
/// Gradients go through the reducer one after the other, in the order in which the model visits its
/// parameters, flat and beside each other in vectors of about 64 MiB. They are f32 there, or f64
/// where they are f64, and get their number type back. A parameter that has a gradient on one worker
/// has one on all of them afterwards; one that has none on any worker, such as a frozen one, is not
/// sent. Every value is read back.
///
/// # Errors
///
/// The workers do not come together: see [`ReduceError`]. Models that differ have other numbers of
/// values, which is an error as well.
pub fn sum_gradients<M: Module>(
    grads: GradientsParams,
    model: &M,
    reducer: &dyn Reducer,
) -> Result<GradientsParams, ReduceError> {
    let mut present = Present {
        grads: &grads,
        seen: HashSet::new(),
        marks: Vec::new(),
        device: None,
    };
    model.visit(&mut present);
    let Some(device) = present.device else {
        return Ok(grads);
    };
    let marks = sum_numbers(reducer, &present.marks, &device)?;
    let mut sums = Sums {
        grads,
        seen: HashSet::new(),
        marks: marks.into_iter(),
        flat: Vec::new(),
        places: Vec::new(),
        reducer,
        result: Ok(()),
    };
    model.visit(&mut sums);
    sums.send();
    sums.result?;
    Ok(sums.grads)
}

/// Which parameters have a gradient, 1 or 0 each.
struct Present<'a> {
    grads: &'a GradientsParams,
    seen: HashSet<ParamId>,
    marks: Vec<f64>,
    device: Option<Device>,
}

impl ModuleVisitor for Present<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.seen.insert(param.id) {
            let mark = self.grads.get::<D>(param.id).is_some();
            self.marks.push(f64::from(u8::from(mark)));
            let device = || param.lazy_device().inner();
            self.device.get_or_insert_with(device);
        }
    }
}

/// Puts a part of the sums where it belongs.
type Place = Box<dyn FnOnce(Tensor<1>, &mut GradientsParams)>;

struct Sums<'a> {
    grads: GradientsParams,
    seen: HashSet<ParamId>,
    /// Number of workers that have a gradient, for each parameter that is still to come.
    marks: std::vec::IntoIter<f64>,
    /// Gradients that wait, of one device and number type.
    flat: Vec<Tensor<1>>,
    places: Vec<(usize, Place)>,
    reducer: &'a dyn Reducer,
    result: Result<(), ReduceError>,
}

impl Sums<'_> {
    fn send(&mut self) {
        let (flat, places) = (
            std::mem::take(&mut self.flat),
            std::mem::take(&mut self.places),
        );
        if flat.is_empty() || self.result.is_err() {
            return;
        }
        let sum = match self.reducer.sum(Tensor::cat(flat, 0)) {
            Ok(sum) => sum,
            Err(error) => return self.result = Err(error),
        };
        let mut start = 0;
        for (length, place) in places {
            place(sum.clone().narrow(0, start, length), &mut self.grads);
            start += length;
        }
    }
}

impl ModuleVisitor for Sums<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !self.seen.insert(param.id) || self.marks.next().is_none_or(|workers| workers == 0.0) {
            return;
        }
        let id = param.id;
        let grad = self.grads.remove::<D>(id);
        let grad = grad.unwrap_or_else(|| param.val().without_autodiff().zeros_like());
        let (shape, dtype) = (grad.shape(), grad.dtype());
        let length = shape.num_elements();
        if length == 0 {
            return self.grads.register::<D>(id, grad);
        }
        let grad = grad.reshape([length]);
        let grad = match dtype {
            DType::F64 => grad,
            _ => grad.cast(FloatDType::F32),
        };
        let waiting: usize = self.places.iter().map(|(length, _)| length).sum();
        let is_alike =
            |first: &Tensor<1>| first.device() == grad.device() && first.dtype() == grad.dtype();
        if waiting + length > AT_ONCE || !self.flat.first().is_none_or(is_alike) {
            self.send();
        }
        self.flat.push(grad);
        let place = move |sum: Tensor<1>, grads: &mut GradientsParams| {
            grads.register::<D>(id, sum.reshape(shape).cast(dtype));
        };
        self.places.push((length, Box::new(place)));
    }
}
