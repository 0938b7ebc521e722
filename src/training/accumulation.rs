//! One optimiser step from parts of its batch.

use std::fmt;

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::Tensor;

use crate::error::{InvalidHyperparameter, InvalidInput};
use crate::hyperparameter::positive;
use crate::objective::LossOutput;
use crate::training::gradients::{clip_by_global_norm, sum_gradients};
use crate::training::metrics::{BatchMetrics, Observe};
use crate::training::reducer::{ReduceError, Reducer};

/// The gradients and metrics of one optimiser step, from parts of its batch: those of the mean over
/// all examples, however unequal the parts are.
///
/// ```text
/// ∇ Σ_parts Σ_i loss_i / n          n examples in all parts and on all workers
/// ```
///
/// A mean of each part, summed up, is the gradient of something else: a part of one pair would weigh
/// as much as one of eight. Parts that other threads compute are a [`StepPart`] each. The guide's [training loop](crate::guide::training_loop) uses it, and
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
///         SequenceLogProbs::new(sum, &vec![1; n])
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
    examples: usize,
    gradients: GradientsAccumulator<M>,
    metrics: BatchMetrics,
}

/// Gradients, metrics and number of examples of one part of a step. Any thread may compute it;
/// [`Accumulation::add_part`] takes it.
///
/// Two graphs that share the leaves of one model wait for each other: a thread takes a
/// [`fork`](burn::module::Module::fork) of the policy, whose leaves are its own and whose parameters
/// have the same ids. The order in which parts are added decides the last bits, not the thread.
///
/// ```
/// # use burn::module::{Module, Param};
/// # use burn::tensor::{Device, Tensor};
/// # use burn_preference::BatchMetrics;
/// use burn_preference::training::accumulation::{Accumulation, StepPart};
/// # #[derive(Module, Debug)]
/// # struct Model {
/// #     scale: Param<Tensor<1>>,
/// # }
/// # let device = Device::default().autodiff();
/// # let policy = Model { scale: Param::from_tensor(Tensor::ones([1], &device)) };
/// let parts = std::thread::scope(|scope| {
///     let part = |examples: usize| {
///         let policy = policy.clone().fork(&device);
///         scope.spawn(move || {
///             let losses = policy.scale.val().repeat_dim(0, examples);
///             let metrics = BatchMetrics::default().with("loss", losses.clone());
///             StepPart::new(&policy, losses, metrics, 4.0)
///         })
///     };
///     [part(3), part(1)].map(|thread| thread.join().unwrap())
/// });
/// let mut step = Accumulation::over(4.0)?;
/// for part in parts {
///     step.add_part(&policy, part?)?;
/// }
/// let (grads, _) = step.clipped(&policy, 1.0)?;
/// assert_eq!(grads.get::<1>(policy.scale.id).unwrap().into_scalar::<f32>(), 1.0);
/// # Ok::<(), burn_preference::Error>(())
/// ```
#[derive(Debug)]
pub struct StepPart {
    total: f64,
    examples: usize,
    gradients: GradientsParams,
    metrics: BatchMetrics,
}

impl StepPart {
    /// The part with these `losses`, `[examples]`, with autodiff, and these metrics of them, of a
    /// step with `total` examples. `model` is the one that the losses were computed with.
    ///
    /// # Errors
    ///
    /// The losses have no gradient: the model is not on an autodiff device, or it is frozen.
    pub fn new<M: Module>(
        model: &M,
        losses: Tensor<1>,
        metrics: BatchMetrics,
        total: f64,
    ) -> Result<Self, InvalidInput> {
        let [examples] = losses.dims();
        let mut gradients = GradientsParams::new();
        // A sum over nothing has no graph.
        if examples > 0 {
            if !losses.is_tracked() {
                let expected = "a gradient: a trainable model on an autodiff device";
                return Err(InvalidInput::new("losses", expected, "none"));
            }
            let loss = losses.sum_dim(0) * total.recip();
            gradients = GradientsParams::from_grads(loss.backward(), model);
        }
        Ok(Self {
            total,
            examples,
            gradients,
            metrics,
        })
    }
}

impl<M: Module> Accumulation<M> {
    /// Nothing yet of a step with `total` examples: those of all parts, and of all workers
    /// ([`Reducer::total`]) where their gradients are summed, by [`reduced`](Self::reduced) or by
    /// Burn.
    ///
    /// # Errors
    ///
    /// `total` is not a finite number > 0.
    pub fn over(total: f64) -> Result<Self, InvalidHyperparameter> {
        positive("total", total)?;
        Ok(Self {
            total,
            examples: 0,
            gradients: GradientsAccumulator::default(),
            metrics: BatchMetrics::default(),
        })
    }

    /// Number of examples of the parts so far.
    pub fn examples(&self) -> usize {
        self.examples
    }

    /// Adds a part: the metrics of [`BatchMetrics::observe`], and the gradients of its losses by
    /// [`LossOutput::normalized_by`] the total.
    ///
    /// # Errors
    ///
    /// As [`StepPart::new`] and [`add_part`](Self::add_part).
    pub fn add<B: Observe>(
        &mut self,
        model: &M,
        batch: &B,
        output: LossOutput<B::Rewards>,
    ) -> Result<(), InvalidInput> {
        let metrics = BatchMetrics::observe(batch, &output);
        self.add_part(
            model,
            StepPart::new(model, output.losses(), metrics, self.total)?,
        )
    }

    /// Adds a part that was computed elsewhere, for `model` or a fork of it.
    ///
    /// # Errors
    ///
    /// The part is one of a step with another total, or the parts have more examples than the total.
    pub fn add_part(&mut self, model: &M, part: StepPart) -> Result<(), InvalidInput> {
        if part.total.to_bits() != self.total.to_bits() {
            return Err(InvalidInput::new("total", self.total, part.total));
        }
        let examples = self.examples + part.examples;
        if examples as f64 > self.total {
            let expected = format!("{} at most, the total", self.total);
            return Err(InvalidInput::new("examples", expected, examples));
        }
        self.examples = examples;
        self.metrics = std::mem::take(&mut self.metrics).merge(part.metrics);
        self.gradients.accumulate(model, part.gradients);
        Ok(())
    }

    /// The step of all workers: gradients, metrics and number of examples are summed, so that what
    /// [`clipped`](Self::clipped) returns is the same on each of them, and that of one process. Every
    /// worker calls it once a step, after its last part; one that had no part as well.
    ///
    /// For workers that are processes. burn-train's `MultiDevice` sums gradients itself.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use burn::module::{Module, Param};
    /// # use burn::tensor::{Device, Tensor};
    /// # use burn_preference::BatchMetrics;
    /// # use burn_preference::training::accumulation::{Accumulation, StepPart};
    /// use burn_preference::Error;
    /// use burn_preference::training::reducer::Threads;
    /// # #[derive(Module, Debug)]
    /// # struct Model {
    /// #     scale: Param<Tensor<1>>,
    /// # }
    /// # let device = Device::default().autodiff();
    /// # let policy = Model { scale: Param::from_tensor(Tensor::ones([1], &device)) };
    ///
    /// // Three of the four examples here, one there; between processes it is `Mpi::init`.
    /// let workers = Threads::new(2, Duration::from_secs(10))?;
    /// let slopes = std::thread::scope(|scope| {
    ///     let worker = |examples: usize| {
    ///         let (policy, reducer) = (policy.clone().fork(&device), workers.clone());
    ///         scope.spawn(move || -> Result<f32, Error> {
    ///             let losses = policy.scale.val().repeat_dim(0, examples) * 3.0;
    ///             let metrics = BatchMetrics::default().with("loss", losses.clone());
    ///             let mut step = Accumulation::over(4.0)?;
    ///             step.add_part(&policy, StepPart::new(&policy, losses, metrics, 4.0)?)?;
    ///             let (grads, metrics) = step.reduced(&policy, &reducer)?.clipped(&policy, 10.0)?;
    ///             assert_eq!(metrics.read()?.count("loss"), 4.0);
    ///             Ok(grads.get::<1>(policy.scale.id).unwrap().into_scalar::<f32>())
    ///         })
    ///     };
    ///     [worker(3), worker(1)].map(|worker| worker.join().unwrap())
    /// });
    /// for slope in slopes {
    ///     assert_eq!(slope?, 3.0); // 3·3/4 here, 3/4 there
    /// }
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The workers do not come together, or they have more examples than the total: see
    /// [`ReduceError`].
    pub fn reduced(self, model: &M, reducer: &dyn Reducer) -> Result<Self, ReduceError> {
        let Self {
            total,
            examples,
            mut gradients,
            metrics,
        } = self;
        let devices = model.devices();
        let device = devices.first().cloned().unwrap_or_default().inner();
        let examples = reducer.total(examples, &device)?;
        if examples > total {
            return Err(ReduceError::Examples { examples, total });
        }
        let metrics = metrics.read().map_err(|error| ReduceError::Unreadable {
            reason: error.to_string(),
        })?;
        let metrics = metrics.reduced(reducer, &device)?;
        let summed = sum_gradients(gradients.grads(), model, reducer)?;
        gradients = GradientsAccumulator::default();
        gradients.accumulate(model, summed);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count of examples"
        )]
        Ok(Self {
            total,
            examples: examples as usize,
            gradients,
            metrics: BatchMetrics::on_device(&metrics, &device),
        })
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
            .field("examples", &self.examples)
            .field("metrics", &self.metrics)
            .finish_non_exhaustive()
    }
}
