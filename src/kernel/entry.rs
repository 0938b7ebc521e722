//! The functions that the rest of the crate calls.

use burn::backend::{Dispatch, DispatchTensor};
use burn::tensor::{Bool, Int, Tensor};

use super::discrepancy::Discrepancy;
use super::forward::{STATISTICS, Save};
use super::head::{Head, HeadTensors};
use super::operation::{ComparisonOptions, HeadOptions, LogProbOps};
use super::{choice, generic};

/// Results of one pass over logits: log-probabilities `[rows]`, alone or with by-products
/// `[rows, 4]`. The type says which, and a kernel computes nothing else.
pub trait Outputs {
    const STATISTICS: bool;

    /// Takes the two outputs of an operation.
    fn from_operation(outputs: (DispatchTensor, DispatchTensor)) -> Self;

    /// The values of no row. `log_probs` is `[0]`, and may keep a graph.
    fn of_no_row(log_probs: Tensor<1>) -> Self;
}

impl Outputs for Tensor<1> {
    const STATISTICS: bool = false;

    fn from_operation((log_probs, _): (DispatchTensor, DispatchTensor)) -> Self {
        Self::from_dispatch(log_probs)
    }

    fn of_no_row(log_probs: Tensor<1>) -> Self {
        log_probs
    }
}

impl Outputs for (Tensor<1>, Tensor<2>) {
    const STATISTICS: bool = true;

    fn from_operation((log_probs, by_products): (DispatchTensor, DispatchTensor)) -> Self {
        let by_products = Tensor::from_dispatch(by_products).without_autodiff();
        (Tensor::from_dispatch(log_probs), by_products)
    }

    fn of_no_row(log_probs: Tensor<1>) -> Self {
        let by_products = Tensor::empty([0, STATISTICS], &log_probs.device());
        (log_probs, by_products)
    }
}

/// Log-probability of each row's target under a head. A trainable head may keep `retained_bytes` of
/// logits for its backward; `None` is the default.
pub(crate) fn head_log_probs<O: Outputs>(
    head: HeadTensors,
    targets: Tensor<1, Int>,
    retained_bytes: Option<usize>,
) -> O {
    let extension = choice::has_extension(&head.hidden.device());
    head_log_probs_by(extension, head, targets, retained_bytes)
}

fn head_log_probs_by<O: Outputs>(
    extension: bool,
    head: HeadTensors,
    targets: Tensor<1, Int>,
    retained_bytes: Option<usize>,
) -> O {
    let ([hidden, weight, bias], form) = head.into_dispatch();
    let targets = targets.into_dispatch();
    O::from_operation(if extension {
        let options = HeadOptions {
            form,
            retained_bytes,
            statistics: O::STATISTICS,
        };
        Dispatch::head_log_probs(hidden, weight, bias, targets, options)
    } else {
        let head = Head::<Dispatch>::new(hidden, weight, bias, targets, form);
        generic::head_forward(head, Save::Nothing, O::STATISTICS).into_outputs()
    })
}

/// Logits `[rows, vocab]` under a head, by Burn's own operations on every backend.
pub(crate) fn head_logits(head: HeadTensors) -> Tensor<2> {
    // The logits do not depend on the targets.
    let targets = Tensor::<1, Int>::zeros([1], &head.hidden.device()).into_dispatch();
    let ([hidden, weight, bias], form) = head.into_dispatch();
    let head = Head::new(hidden.clone(), weight, bias, targets, form);
    Tensor::from_dispatch(generic::logits::<Dispatch>(hidden, &head))
}

/// Divergence of two heads at every row, `[rows]`. Only the policy gets a gradient.
pub(crate) fn head_discrepancy(
    kind: Discrepancy,
    policy: HeadTensors,
    reference: HeadTensors,
) -> Tensor<1> {
    let extension = choice::has_extension(&policy.hidden.device());
    head_discrepancy_by(extension, kind, policy, reference)
}

fn head_discrepancy_by(
    extension: bool,
    kind: Discrepancy,
    policy: HeadTensors,
    reference: HeadTensors,
) -> Tensor<1> {
    let [rows, _] = policy.hidden.dims();
    let targets = Tensor::<1, Int>::zeros([rows], &policy.hidden.device()).into_dispatch();
    let ([hidden, weight, bias], form) = policy.into_dispatch();
    let ([ref_hidden, ref_weight, ref_bias], reference_form) = reference.into_dispatch();
    Tensor::from_dispatch(if extension {
        let options = ComparisonOptions {
            kind,
            form,
            reference_form,
        };
        Dispatch::head_discrepancy(
            hidden, weight, bias, ref_hidden, ref_weight, ref_bias, targets, options,
        )
    } else {
        let policy = Head::<Dispatch>::new(hidden, weight, bias, targets.clone(), form);
        let reference = Head::new(ref_hidden, ref_weight, ref_bias, targets, reference_form);
        generic::head_comparison(kind, &policy, &reference, false).discrepancy
    })
}

/// As [`head_discrepancy`], but from logits `[rows, vocab]`. A row that is not counted may hold any
/// values.
pub(crate) fn logits_discrepancy(
    kind: Discrepancy,
    policy: Tensor<2>,
    reference: Tensor<2>,
    counted: Tensor<1, Bool>,
) -> Tensor<1> {
    let extension = choice::has_extension(&policy.device());
    logits_discrepancy_by(extension, kind, policy, reference, counted)
}

fn logits_discrepancy_by(
    extension: bool,
    kind: Discrepancy,
    policy: Tensor<2>,
    reference: Tensor<2>,
    counted: Tensor<1, Bool>,
) -> Tensor<1> {
    let [policy, reference] = [policy, reference].map(Tensor::into_dispatch);
    let counted = counted.into_dispatch();
    Tensor::from_dispatch(if extension {
        Dispatch::logits_discrepancy(policy, reference, counted, kind)
    } else {
        generic::logits_comparison::<Dispatch>(kind, &policy, &reference, &counted).discrepancy
    })
}

/// As [`head_log_probs`], but from logits `[rows, vocab]`. A row that is not counted may hold any
/// values.
pub(crate) fn logits_log_probs<O: Outputs>(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    counted: Tensor<1, Bool>,
) -> O {
    let extension = choice::has_extension(&logits.device());
    logits_log_probs_by(extension, logits, targets, counted)
}

fn logits_log_probs_by<O: Outputs>(
    extension: bool,
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    counted: Tensor<1, Bool>,
) -> O {
    let [logits, targets] = [logits.into_dispatch(), targets.into_dispatch()];
    let counted = counted.into_dispatch();
    O::from_operation(if extension {
        Dispatch::logits_log_probs(logits, targets, counted, O::STATISTICS)
    } else {
        generic::logits_forward::<Dispatch>(logits, targets, counted, O::STATISTICS).into_outputs()
    })
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::{Bool, DType, Device, Distribution, Int, Tensor};

    use super::super::choice::has_extension;
    use super::super::discrepancy::Discrepancy;
    use super::super::head::{HeadTensors, Shaping};
    use super::{
        head_discrepancy_by, head_log_probs_by, logits_discrepancy_by, logits_log_probs_by,
    };

    fn numbers(tensors: &[Tensor<2>]) -> Vec<f64> {
        let values = |tensor: &Tensor<2>| tensor.to_data().iter::<f64>().collect::<Vec<_>>();
        tensors.iter().flat_map(values).collect()
    }

    fn agree(ours: &[Tensor<2>], plain: &[Tensor<2>]) {
        let (ours, plain) = (numbers(ours), numbers(plain));
        assert_eq!(ours.len(), plain.len());
        for (a, b) in ours.into_iter().zip(plain) {
            assert!((a - b).abs() < 1e-12, "{a} and {b}");
        }
    }

    /// Tests the path of a backend that is enabled in `burn` but not in our features.
    #[test]
    fn without_the_extension() {
        let device = Device::flex();
        assert!(has_extension(&device) && has_extension(&device.clone().autodiff()));
        #[cfg(feature = "ndarray")]
        assert!(has_extension(&Device::ndarray()));
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
                let (log_probs, statistics): (Tensor<1>, Tensor<2>) =
                    head_log_probs_by(extension, head, targets.clone(), Some(0));
                let loss = log_probs.clone().exp().sum();
                let grads = loss.backward();
                let grad = |leaf: &Tensor<2>| leaf.grad(&grads).expect("a leaf");
                [
                    log_probs.inner().unsqueeze(),
                    statistics,
                    grad(&hidden),
                    grad(&weight),
                    grad(&bias),
                ]
            };
            agree(&by(true), &by(false));
        }

        let leaf = random([4, 7]);
        let counted = Tensor::<1, Bool>::from_bool([true, false, true, true], &device);
        let by = |extension: bool| {
            let (logits, targets) = (leaf.clone(), targets.clone());
            let (log_probs, statistics): (Tensor<1>, Tensor<2>) =
                logits_log_probs_by(extension, logits, targets, counted.clone());
            let not_counted = counted.clone().bool_not();
            let log_probs = log_probs.mask_fill(not_counted.clone(), 0.0);
            let not_counted = not_counted.unsqueeze_dim::<2>(1).expand(statistics.dims());
            let grads = log_probs.clone().exp().sum().backward();
            [
                log_probs.inner().unsqueeze(),
                statistics.mask_fill(not_counted, 0.0),
                leaf.grad(&grads).expect("a leaf"),
            ]
        };
        agree(&by(true), &by(false));
    }

    /// The same of two models: as heads, and as logits.
    #[test]
    fn a_comparison_without_the_extension() {
        let device = Device::flex();
        let random = |shape: [usize; 2]| {
            let all = Distribution::Uniform(-2.0, 2.0);
            Tensor::<2>::random(shape, all, (&device, DType::F64))
        };
        let leaf = |shape| random(shape).autodiff().require_grad();
        let shaping = Shaping {
            scale: 0.5,
            softcap: Some(1.5),
            temperature: 0.8,
        };
        let head = |hidden: &Tensor<2>, weight: &Tensor<2>, shaping| HeadTensors {
            hidden: hidden.clone(),
            weight: weight.clone(),
            bias: None,
            words_first: true,
            shaping,
        };
        let [hidden, weight, logits] = [[4, 5], [7, 5], [4, 7]].map(leaf);
        let [their_hidden, their_weight, their_logits] = [[4, 3], [7, 3], [4, 7]].map(random);
        let counted = Tensor::<1, Bool>::from_bool([true, false, true, true], &device);
        for kind in [
            Discrepancy::ForwardKl,
            Discrepancy::ReverseKl,
            Discrepancy::JensenShannon(0.3),
        ] {
            let by = |extension: bool| {
                let policy = head(&hidden, &weight, shaping);
                let reference = head(&their_hidden, &their_weight, Shaping::NONE);
                let found = head_discrepancy_by(extension, kind, policy, reference);
                let grads = found.clone().exp().sum().backward();
                let grad = |leaf: &Tensor<2>| leaf.grad(&grads).expect("a leaf");
                let of_head = [found.inner().unsqueeze(), grad(&hidden), grad(&weight)];

                let (ours, theirs) = (logits.clone(), their_logits.clone());
                let found = logits_discrepancy_by(extension, kind, ours, theirs, counted.clone());
                let grads = found.clone().exp().sum().backward();
                let gradient = logits.grad(&grads).expect("a leaf");
                let of_logits = [found.inner().unsqueeze(), gradient];
                of_head.into_iter().chain(of_logits).collect::<Vec<_>>()
            };
            agree(&by(true), &by(false));
        }
    }
}
