//! One optimiser step from parts of its batch.

use std::fmt;

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};

use crate::batch::Batch;
use crate::error::{InvalidHyperparameter, InvalidInput};
use crate::hyperparameter::positive;
use crate::objective::LossOutput;
use crate::training::gradients::clip_by_global_norm;
use crate::training::metrics::{BatchMetrics, Observe};

/// The gradients and metrics of one optimiser step, from parts of its batch: those of the mean over
/// all examples, however unequal the parts are.
///
/// ```text
/// ∇ Σ_parts Σ_i loss_i / n          n examples in all parts and on all workers
/// ```
///
/// A mean of each part, summed up, is the gradient of something else: a part of one pair would weigh
/// as much as one of eight. The guide's [training loop](crate::guide::training_loop) uses it, and
/// says which losses cannot be cut into parts.
///
/// ```
/// use burn::module::Param;
/// use burn::tensor::{Device, Tensor};
/// use burn_preference::training::accumulation::Accumulation;
/// use burn_preference::{DpoLossConfig, Objective, Pair, PolicyPair, SequenceLogProbs};
/// # use burn::module::Module;
///
/// #[derive(Module, Debug)]
/// struct Model {
///     scale: Param<Tensor<1>>,
/// }
///
/// let device = Device::default().autodiff();
/// let model = Model { scale: Param::from_tensor(Tensor::zeros([1], &device)) };
/// // Margins of `scale` nats against a reference that finds everything equally likely.
/// let pairs = |n: usize| {
///     let y = |sign: f32| -> Result<_, _> {
///         let sum = model.scale.val().repeat_dim(0, n) * sign;
///         SequenceLogProbs::new(sum, Tensor::ones([n], &Device::default()))
///     };
///     Pair::new(y(0.5)?, y(-0.5)?).map(PolicyPair::with_uniform_reference)
/// };
/// let dpo = DpoLossConfig::new().with_beta(0.1).init();
///
/// let mut step = Accumulation::over(4.0)?;
/// for part in [pairs(3)?, pairs(1)?] {
///     step.add(&model, &part, dpo.forward(part.clone()))?;
/// }
/// let (grads, metrics) = step.clipped(&model, 1.0)?;
/// // ∂/∂margin of −ln σ(β·margin) at 0: −β/2.
/// let slope = grads.get::<1>(model.scale.id).unwrap().into_scalar::<f32>();
/// assert!((slope - -0.05).abs() < 1e-6);
/// let metrics = metrics.read()?;
/// assert_eq!(metrics.count("loss"), 4.0);
/// assert!((metrics.get("grad_norm").unwrap() - 0.05).abs() < 1e-6);
/// # Ok::<(), burn_preference::Error>(())
/// ```
pub struct Accumulation<M> {
    total: f64,
    seen: usize,
    gradients: GradientsAccumulator<M>,
    metrics: BatchMetrics,
}

impl<M: Module> Accumulation<M> {
    /// Of a step with so many examples in all: of all parts, and of all workers
    /// ([`Reducer::total`](crate::training::reducer::Reducer::total)) where Burn sums their
    /// gradients.
    ///
    /// # Errors
    ///
    /// `total` is not a finite number > 0.
    pub fn over(total: f64) -> Result<Self, InvalidHyperparameter> {
        positive("total", total)?;
        Ok(Self {
            total,
            seen: 0,
            gradients: GradientsAccumulator::default(),
            metrics: BatchMetrics::default(),
        })
    }

    /// Adds a part: what [`BatchMetrics::observe`] says of it, and the gradients of its losses by
    /// [`LossOutput::normalized_by`] the total.
    ///
    /// # Errors
    ///
    /// The parts have more examples than the total.
    ///
    /// # Panics
    ///
    /// No loss has a gradient: the model is not on an autodiff device.
    pub fn add<B: Observe>(
        &mut self,
        model: &M,
        batch: &B,
        output: LossOutput<B::Rewards>,
    ) -> Result<(), InvalidInput> {
        let seen = self.seen + Batch::len(batch);
        if seen as f64 > self.total {
            let expected = format!("{} at most, the total", self.total);
            return Err(InvalidInput::new("examples", expected, seen));
        }
        self.seen = seen;
        let metrics = std::mem::take(&mut self.metrics);
        self.metrics = metrics.merge(BatchMetrics::observe(batch, &output));
        if Batch::is_empty(batch) {
            // A sum over nothing has no graph to walk.
            return Ok(());
        }
        let loss = output.sum() * self.total.recip();
        let gradients = GradientsParams::from_grads(loss.backward(), model);
        self.gradients.accumulate(model, gradients);
        Ok(())
    }

    /// The gradients, clipped together by [`clip_by_global_norm`], and the metrics of all parts with
    /// the norm before clipping as `grad_norm`. Nothing is read back.
    ///
    /// # Errors
    ///
    /// `max_norm` is not a finite number > 0.
    pub fn clipped(
        mut self,
        model: &M,
        max_norm: f64,
    ) -> Result<(GradientsParams, BatchMetrics), InvalidHyperparameter> {
        let (gradients, norm) = clip_by_global_norm(self.gradients.grads(), model, max_norm)?;
        Ok((gradients, self.metrics.with("grad_norm", norm)))
    }
}

impl<M> fmt::Debug for Accumulation<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accumulation")
            .field("total", &self.total)
            .field("seen", &self.seen)
            .field("metrics", &self.metrics)
            .finish_non_exhaustive()
    }
}
