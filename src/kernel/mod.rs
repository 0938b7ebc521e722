//! The log-probability of one word per row, as one differentiable operation on every backend.
//!
//! ```text
//! x_n = W h_n + b,    log p_n = x_n[y_n] − ln Σ_v exp x_n[v]
//! ```
//!
//! Burn dispatches to [`LogProbOps`]; its implementation for autodiff (`autodiff.rs`) has a
//! backward written by hand. A backend computes [`LogProbKernel`]; the default bodies
//! (`generic.rs`) use Burn's own operations. Flex and GPUs have their own kernels (`flex/`,
//! `cube/`).

mod autodiff;
#[cfg(feature = "_cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
mod generic;

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, DispatchTensor, backend_extension};
use burn::tensor::{Bool, Device, Int, Tensor};

/// How a head turns x = W h + b into logits: `softcap(scale·x) / temperature`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shaping {
    pub scale: f64,
    /// The c of `c·tanh(x/c)`. `None` leaves x as it is.
    pub softcap: Option<f64>,
    pub temperature: f64,
}

impl Shaping {
    pub const NONE: Self = Self {
        scale: 1.0,
        softcap: None,
        temperature: 1.0,
    };

    /// Whether the logits are equal to x.
    #[cfg(any(feature = "flex", feature = "_cube"))]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// ∂logit/∂x at 0, and everywhere without a softcap.
    pub fn factor(self) -> f64 {
        self.scale / self.temperature
    }

    /// The u of `∂logit/∂x = factor·(1 − (u·logit)²)`; u is 0 without a softcap.
    pub fn bend(self) -> f64 {
        self.softcap.map_or(0.0, |cap| self.temperature / cap)
    }
}

/// The properties of a head that are not tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadForm {
    /// If true, the weight is `[vocab, hidden]`; otherwise the weight is `[hidden, vocab]`.
    pub words_first: bool,
    /// If true, the head has a bias; otherwise the bias tensor is a placeholder.
    pub biased: bool,
    pub shaping: Shaping,
}

/// The form of a head, and what a call wants in addition to the log-probabilities.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadOptions {
    pub form: HeadForm,
    /// Bytes of logits that a trainable head may keep for its backward.
    pub retained_bytes: usize,
    /// If true, the second output holds the by-products.
    pub statistics: bool,
}

/// Number of by-products of a row. Their order is: entropy, ln Σp², top-1 hit, mean logit.
pub const STATISTICS: usize = 4;

/// The operations return log-probabilities `[rows]`, which have a gradient, and by-products
/// `[rows, 4]`, which have none.
///
/// The second output has no meaning if the caller did not ask for by-products. All targets must be
/// inside the vocabulary.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(feature = "_cube"),
    Remote: cfg(feature = "remote"),
    Autodiff
)]
pub trait LogProbOps: Backend {
    /// Log-probabilities from hidden states `[rows, hidden]`.
    fn head_log_probs(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        targets: IntTensor<Self>,
        options: HeadOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Log-probabilities from logits `[rows, vocab]`. A row that is not counted may hold any
    /// values.
    fn logits_log_probs(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: BoolTensor<Self>,
        statistics: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// KL(π° ‖ π) of every row, `[rows]`. Policy π and reference π° each have their own hidden
    /// states and head. Only the policy gets a gradient. `targets` may hold any values; only the
    /// shape `[rows]` matters.
    #[allow(clippy::too_many_arguments, reason = "two heads")]
    fn head_kl(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        reference_hidden: FloatTensor<Self>,
        reference_weight: FloatTensor<Self>,
        reference_bias: FloatTensor<Self>,
        targets: IntTensor<Self>,
        form: HeadForm,
        reference_form: HeadForm,
    ) -> FloatTensor<Self>;
}

/// Hidden states, weight, bias and targets, as tensors of one backend.
#[derive(Debug, Clone)]
pub struct Head<B: Backend> {
    /// `[rows, hidden]`
    pub hidden: FloatTensor<B>,
    /// `[vocab, hidden]` or `[hidden, vocab]`
    pub weight: FloatTensor<B>,
    /// `[vocab]`, or a placeholder if the head has no bias
    pub bias: FloatTensor<B>,
    /// `[rows]`
    pub targets: IntTensor<B>,
    pub form: HeadForm,
}

impl<B: Backend> Head<B> {
    fn new(
        hidden: FloatTensor<B>,
        weight: FloatTensor<B>,
        bias: FloatTensor<B>,
        targets: IntTensor<B>,
        form: HeadForm,
    ) -> Self {
        Self {
            hidden,
            weight,
            bias,
            targets,
            form,
        }
    }
}

/// What the forward saves for the backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Save {
    /// Nothing, because there is no backward.
    Nothing,
    /// The gradient of each log-probability with respect to its own hidden state.
    ///
    /// A frozen head needs nothing else: row n of the backward is `g_n` times row n of the slope.
    Slope,
    /// The normaliser, and as many tiles of logits as fit into this number of bytes.
    Tiles(usize),
}

/// What a forward returns. Tensors are f32 or f64, with the shape `[rows]` unless another one is
/// given.
#[derive(Debug, Clone)]
pub struct Forward<B: Backend> {
    pub log_probs: FloatTensor<B>,
    /// `[rows, 2]`: the largest logit m, and `ln Σ exp(x − m)`. Both are stored, and not their sum
    /// (the log-sum-exp), because the sum would round at the magnitude of the logits.
    pub normalizer: FloatTensor<B>,
    /// `[rows, 4]`, if asked for.
    pub statistics: Option<FloatTensor<B>>,
    /// `[rows, hidden]`, only with [`Save::Slope`].
    pub slope: Option<FloatTensor<B>>,
    /// Only with [`Save::Tiles`]. Each kernel chooses the layout.
    pub tiles: Vec<FloatTensor<B>>,
}

/// Gradients of hidden states, weight and bias; `None` for a gradient that is not wanted.
pub type HeadGradients<B> = [Option<FloatTensor<B>>; 3];

/// The computations of a backend, without autodiff.
pub trait LogProbKernel: Backend {
    /// The forward of [`LogProbOps::head_log_probs`].
    fn head_forward(head: Head<Self>, save: Save, statistics: bool) -> Forward<Self> {
        generic::head_forward(head, save, statistics)
    }

    /// The backward of [`Self::head_forward`] after [`Save::Tiles`]. `grad` is `[rows]`.
    fn head_backward(
        head: Head<Self>,
        normalizer: FloatTensor<Self>,
        tiles: Vec<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
        wanted: [bool; 3],
    ) -> HeadGradients<Self> {
        generic::head_backward(head, normalizer, tiles, grad, wanted)
    }

    /// The forward of [`LogProbOps::logits_log_probs`].
    fn logits_forward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: BoolTensor<Self>,
        statistics: bool,
    ) -> Forward<Self> {
        generic::logits_forward::<Self>(logits, targets, counted, statistics)
    }

    /// The backward of [`Self::logits_forward`]: the gradient of the logits. The gradient takes the
    /// buffer of the logits if no other tensor holds this buffer.
    fn logits_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: BoolTensor<Self>,
        normalizer: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        generic::logits_backward::<Self>(logits, targets, counted, normalizer, grad)
    }

    /// The forward of [`LogProbOps::head_kl`].
    fn kl_forward(policy: Head<Self>, reference: Head<Self>) -> FloatTensor<Self> {
        generic::kl_forward(policy, reference)
    }

    /// The backward of [`Self::kl_forward`], for the policy's head.
    fn kl_backward(
        policy: Head<Self>,
        reference: Head<Self>,
        grad: FloatTensor<Self>,
        wanted: [bool; 3],
    ) -> HeadGradients<Self> {
        generic::kl_backward(policy, reference, grad, wanted)
    }
}

#[cfg(feature = "ndarray")]
#[allow(deprecated)]
impl LogProbKernel for burn::backend::NdArray {}
#[cfg(feature = "tch")]
#[allow(deprecated)]
impl LogProbKernel for burn::backend::LibTorch {}
#[cfg(feature = "remote")]
impl LogProbKernel for burn::backend::Remote {}

/// Turns the result of a kernel into the two outputs of an operation.
fn outputs<B: Backend>(forward: Forward<B>) -> (FloatTensor<B>, FloatTensor<B>) {
    // An operation always returns two tensors. Without by-products, the second one is another
    // handle to the log-probabilities.
    let statistics = forward
        .statistics
        .unwrap_or_else(|| forward.log_probs.clone());
    (forward.log_probs, statistics)
}

impl<B: LogProbKernel> LogProbOps for B {
    fn head_log_probs(
        hidden: FloatTensor<B>,
        weight: FloatTensor<B>,
        bias: FloatTensor<B>,
        targets: IntTensor<B>,
        options: HeadOptions,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        let head = Head::new(hidden, weight, bias, targets, options.form);
        outputs(B::head_forward(head, Save::Nothing, options.statistics))
    }

    fn logits_log_probs(
        logits: FloatTensor<B>,
        targets: IntTensor<B>,
        counted: BoolTensor<B>,
        statistics: bool,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        outputs(B::logits_forward(logits, targets, counted, statistics))
    }

    fn head_kl(
        hidden: FloatTensor<B>,
        weight: FloatTensor<B>,
        bias: FloatTensor<B>,
        reference_hidden: FloatTensor<B>,
        reference_weight: FloatTensor<B>,
        reference_bias: FloatTensor<B>,
        targets: IntTensor<B>,
        form: HeadForm,
        reference_form: HeadForm,
    ) -> FloatTensor<B> {
        B::kl_forward(
            Head::new(hidden, weight, bias, targets.clone(), form),
            Head::new(
                reference_hidden,
                reference_weight,
                reference_bias,
                targets,
                reference_form,
            ),
        )
    }
}

/// Whether `device` runs on a backend that [`LogProbOps`] was built for.
///
/// A backend may be enabled in the user's `burn` but not in our features. In this case the tape
/// records the single steps of the generic kernel, and therefore keeps the logits in memory.
fn is_supported(device: &Device) -> bool {
    fn on(device: &DispatchDevice) -> bool {
        match device {
            #[cfg(feature = "flex")]
            DispatchDevice::Flex(_) => true,
            #[cfg(feature = "ndarray")]
            DispatchDevice::NdArray(_) => true,
            #[cfg(feature = "tch")]
            DispatchDevice::LibTorch(_) => true,
            #[cfg(feature = "_cube")]
            DispatchDevice::Cube(_) => true,
            #[cfg(feature = "remote")]
            DispatchDevice::Remote(_) => true,
            DispatchDevice::Autodiff(device) => on(device),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }
    on(device.as_dispatch())
}

/// Log-probability of each row's target under a head, `[rows]`. With `statistics`, also by-products
/// `[rows, 4]`. A trainable head may keep `retained_bytes` of logits for its backward.
pub fn head_log_probs(
    head: HeadTensors,
    targets: Tensor<1, Int>,
    retained_bytes: usize,
    statistics: bool,
) -> (Tensor<1>, Option<Tensor<2>>) {
    let supported = is_supported(&head.hidden.device());
    head_log_probs_by(supported, head, targets, retained_bytes, statistics)
}

fn head_log_probs_by(
    extension: bool,
    head: HeadTensors,
    targets: Tensor<1, Int>,
    retained_bytes: usize,
    statistics: bool,
) -> (Tensor<1>, Option<Tensor<2>>) {
    let ([hidden, weight, bias], form) = head.into_dispatch();
    let targets = targets.into_dispatch();
    let found = if extension {
        let options = HeadOptions {
            form,
            retained_bytes,
            statistics,
        };
        Dispatch::head_log_probs(hidden, weight, bias, targets, options)
    } else {
        let head = Head::<Dispatch>::new(hidden, weight, bias, targets, form);
        outputs(generic::head_forward(head, Save::Nothing, statistics))
    };
    tensors(found, statistics)
}

/// Hidden states `[rows, hidden]` and a head, as tensors.
#[derive(Debug, Clone)]
pub struct HeadTensors {
    pub hidden: Tensor<2>,
    pub weight: Tensor<2>,
    pub bias: Option<Tensor<1>>,
    pub words_first: bool,
    pub shaping: Shaping,
}

impl HeadTensors {
    fn into_dispatch(self) -> ([DispatchTensor; 3], HeadForm) {
        let form = HeadForm {
            words_first: self.words_first,
            biased: self.bias.is_some(),
            shaping: self.shaping,
        };
        let like = (&self.hidden.device(), self.hidden.dtype());
        let bias = self.bias.unwrap_or_else(|| Tensor::zeros([1], like));
        let [hidden, weight] = [self.hidden, self.weight].map(Tensor::into_dispatch);
        ([hidden, weight, bias.into_dispatch()], form)
    }
}

/// Logits `[rows, vocab]` under a head, by Burn's own operations on every backend.
pub fn head_logits(head: HeadTensors) -> Tensor<2> {
    // The logits do not depend on the targets.
    let targets = Tensor::<1, Int>::zeros([1], &head.hidden.device()).into_dispatch();
    let ([hidden, weight, bias], form) = head.into_dispatch();
    let head = Head::new(hidden.clone(), weight, bias, targets, form);
    Tensor::from_dispatch(generic::logits::<Dispatch>(hidden, &head))
}

/// KL(π° ‖ π) of every row, `[rows]`, where π° is the reference and π is the policy.
pub fn head_kl(policy: HeadTensors, reference: HeadTensors) -> Tensor<1> {
    let supported = is_supported(&policy.hidden.device());
    head_kl_by(supported, policy, reference)
}

fn head_kl_by(extension: bool, policy: HeadTensors, reference: HeadTensors) -> Tensor<1> {
    let [rows, _] = policy.hidden.dims();
    let targets = Tensor::<1, Int>::zeros([rows], &policy.hidden.device()).into_dispatch();
    let ([hidden, weight, bias], form) = policy.into_dispatch();
    let ([ref_hidden, ref_weight, ref_bias], ref_form) = reference.into_dispatch();
    Tensor::from_dispatch(if extension {
        Dispatch::head_kl(
            hidden, weight, bias, ref_hidden, ref_weight, ref_bias, targets, form, ref_form,
        )
    } else {
        generic::kl_forward::<Dispatch>(
            Head::new(hidden, weight, bias, targets.clone(), form),
            Head::new(ref_hidden, ref_weight, ref_bias, targets, ref_form),
        )
    })
}

/// As [`head_log_probs`], but from logits `[rows, vocab]`. A row that is not counted may hold any
/// values.
pub fn logits_log_probs(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    counted: Tensor<1, Bool>,
    statistics: bool,
) -> (Tensor<1>, Option<Tensor<2>>) {
    let supported = is_supported(&logits.device());
    logits_log_probs_by(supported, logits, targets, counted, statistics)
}

fn logits_log_probs_by(
    extension: bool,
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    counted: Tensor<1, Bool>,
    statistics: bool,
) -> (Tensor<1>, Option<Tensor<2>>) {
    let [logits, targets] = [logits.into_dispatch(), targets.into_dispatch()];
    let counted = counted.into_dispatch();
    let found = if extension {
        Dispatch::logits_log_probs(logits, targets, counted, statistics)
    } else {
        outputs(generic::logits_forward::<Dispatch>(
            logits, targets, counted, statistics,
        ))
    };
    tensors(found, statistics)
}

fn tensors(
    (log_probs, by_products): (DispatchTensor, DispatchTensor),
    statistics: bool,
) -> (Tensor<1>, Option<Tensor<2>>) {
    let by_products = statistics.then(|| Tensor::from_dispatch(by_products).without_autodiff());
    (Tensor::from_dispatch(log_probs), by_products)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::{Bool, DType, Device, Distribution, Int, Tensor};

    use super::{HeadTensors, Shaping, head_log_probs_by, is_supported, logits_log_probs_by};

    fn numbers(tensors: &[Tensor<2>]) -> Vec<f64> {
        let values = |tensor: &Tensor<2>| tensor.to_data().iter::<f64>().collect::<Vec<_>>();
        tensors.iter().flat_map(values).collect()
    }

    fn agree(ours: &[Tensor<2>], plain: &[Tensor<2>]) {
        for (a, b) in numbers(ours).into_iter().zip(numbers(plain)) {
            assert!((a - b).abs() < 1e-12, "{a} and {b}");
        }
    }

    /// Tests the path of a backend that is enabled in `burn` but not in our features.
    #[test]
    fn without_the_extension() {
        let device = Device::flex();
        assert!(is_supported(&device) && is_supported(&device.clone().autodiff()));
        #[cfg(feature = "ndarray")]
        assert!(is_supported(&Device::ndarray()));
        let random = |shape: [usize; 2]| {
            let all = Distribution::Uniform(-2.0, 2.0);
            let tensor = Tensor::<2>::random(shape, all, (&device, DType::F64));
            tensor.autodiff().require_grad()
        };
        let targets = Tensor::<1, Int>::from_ints([3, 0, 6, 6], &device);
        let [hidden, weight, bias] = [[4, 5], [7, 5], [1, 7]].map(random);
        for words_first in [true, false] {
            let by = |extension: bool| {
                let matrix = weight.clone();
                let head = HeadTensors {
                    hidden: hidden.clone(),
                    weight: if words_first {
                        matrix
                    } else {
                        matrix.transpose()
                    },
                    bias: Some(bias.clone().reshape([7])),
                    words_first,
                    shaping: Shaping {
                        scale: 0.5,
                        softcap: Some(1.5),
                        temperature: 0.8,
                    },
                };
                let (log_probs, statistics) =
                    head_log_probs_by(extension, head, targets.clone(), 0, true);
                let loss = log_probs.clone().exp().sum();
                let grads = loss.backward();
                let grad = |leaf: &Tensor<2>| leaf.grad(&grads).expect("a leaf");
                [
                    log_probs.inner().unsqueeze(),
                    statistics.expect("asked for"),
                    grad(&hidden),
                    grad(&weight),
                    grad(&bias),
                ]
            };
            agree(&by(true), &by(false));
        }

        let logits = random([4, 7]);
        let counted = Tensor::<1, Bool>::from_bool([true, false, true, true], &device);
        let by = |extension: bool| {
            let (log_probs, statistics) = logits_log_probs_by(
                extension,
                logits.clone(),
                targets.clone(),
                counted.clone(),
                true,
            );
            let not_counted = counted.clone().bool_not();
            let log_probs = log_probs.mask_fill(not_counted.clone(), 0.0);
            let statistics = statistics.expect("asked for");
            let not_counted = not_counted.unsqueeze_dim::<2>(1).expand(statistics.dims());
            let grads = log_probs.clone().exp().sum().backward();
            [
                log_probs.inner().unsqueeze(),
                statistics.mask_fill(not_counted, 0.0),
                logits.grad(&grads).expect("a leaf"),
            ]
        };
        agree(&by(true), &by(false));
    }
}
