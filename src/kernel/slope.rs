//! An elementwise function as one differentiable operation, made of its value and its slope.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::{CheckpointStrategy, NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

use super::backend::LogProbKernel;
use super::choice;

/// The operation that Burn dispatches to a backend.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(feature = "_cube"),
    Remote: cfg(feature = "remote"),
    Autodiff
)]
trait SlopeOps: Backend {
    /// `value`, whose derivative by `x` is `slope`, elementwise.
    fn with_slope(
        x: FloatTensor<Self>,
        value: FloatTensor<Self>,
        slope: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl<B: LogProbKernel> SlopeOps for B {
    fn with_slope(_: FloatTensor<B>, value: FloatTensor<B>, _: FloatTensor<B>) -> FloatTensor<B> {
        value
    }
}

impl<B: LogProbKernel, C: CheckpointStrategy> SlopeOps for Autodiff<B, C> {
    fn with_slope(
        x: FloatTensor<Self>,
        value: FloatTensor<Self>,
        slope: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        slope_node(x.node(), value.into_primitive(), slope.into_primitive())
    }
}

/// `value` on the tape, with `slope` as its derivative by the tensor of the guard.
pub(crate) fn slope_node<B: Backend>(
    x: NodeGuard,
    value: FloatTensor<B>,
    slope: FloatTensor<B>,
) -> FloatTensor<Autodiff<B>> {
    // Nothing is computed again, so the strategy for checkpoints makes no difference.
    let prepared = Slope.prepare::<NoCheckpointing>([x]).compute_bound();
    match prepared.stateful() {
        OpsKind::Tracked(prep) => prep.finish(slope, value),
        OpsKind::UnTracked(prep) => prep.finish(value),
    }
}

#[derive(Debug)]
struct Slope;

impl<B: Backend> Backward<B, 1> for Slope {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        unary::<B, _>(ops.parents, ops.node, grads, |grad| {
            B::float_mul(grad, ops.state)
        });
    }
}

/// `value`, a function of each element of `x` whose derivative is `slope`: one node on the tape,
/// however many operations the function takes. Value and slope are without autodiff.
///
/// On a backend that is on in `burn` and not here, these are four nodes. Where x is ±∞ and the
/// slope is not 0, the value must then be x itself times a positive slope.
pub(crate) fn with_slope<const D: usize>(
    x: Tensor<D>,
    value: Tensor<D>,
    slope: Tensor<D>,
) -> Tensor<D> {
    with_slope_by(choice::has_extension(&x.device()), x, value, slope)
}

fn with_slope_by<const D: usize>(
    extension: bool,
    x: Tensor<D>,
    value: Tensor<D>,
    slope: Tensor<D>,
) -> Tensor<D> {
    if extension {
        let [x, value, slope] = [x, value, slope].map(Tensor::into_dispatch);
        return Tensor::from_dispatch(Dispatch::with_slope(x, value, slope));
    }
    let here = x.clone().without_autodiff();
    let infinite = here.clone().is_inf();
    let level = infinite.clone().bool_and(slope.clone().equal_elem(0.0));
    // 0, or ±∞ where x is.
    let step = (x - here.mask_fill(infinite, 0.0)).mask_fill(level, 0.0);
    value + step * slope
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::with_slope_by;

    #[test]
    fn both_ways_give_value_and_slope() {
        let device = Device::flex();
        let of = |values: [f32; 4]| Tensor::<1>::from_floats(values, &device);
        let value = [9.0, f32::INFINITY, 0.0, -5.0];
        for extension in [true, false] {
            let x = of([3.0, f32::INFINITY, f32::NEG_INFINITY, -1.0])
                .autodiff()
                .require_grad();
            let slope = of([6.0, 1.0, 0.0, -2.0]);
            let y = with_slope_by(extension, x.clone(), of(value), slope);
            let grads = (y.clone() * of([1.0, 2.0, 3.0, 4.0])).sum().backward();
            let numbers = |y: Tensor<1>| y.into_data().try_to_vec::<f32>().expect("f32");
            assert_eq!(numbers(y.inner()), value);
            let grad = x.grad(&grads).expect("a leaf");
            assert_eq!(numbers(grad), [6.0, 2.0, 0.0, -8.0]);
        }
    }
}
