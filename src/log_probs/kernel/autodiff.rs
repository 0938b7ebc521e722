//! The backward, by hand: the tape holds one node, and of its inputs only what that node needs.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, TensorMetadata};
use burn::tensor::{FloatDType, Shape};

use super::{
    Forward, Head, HeadGradients, HeadOptions, KlOptions, LogProbKernel, LogProbOps, Save,
};

impl<B: LogProbKernel, C: CheckpointStrategy> LogProbOps for Autodiff<B, C> {
    fn head_log_probs(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        targets: IntTensor<Self>,
        options: HeadOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let save = match [hidden.is_tracked(), weight.is_tracked(), bias.is_tracked()] {
            [false, false, false] => Save::Nothing,
            [true, false, false] => Save::Slope,
            _ => Save::Tiles(options.retained_bytes),
        };
        let head = Head::<B>::new(
            hidden.primitive().clone(),
            weight.primitive().clone(),
            bias.primitive().clone(),
            targets.clone(),
            options,
        );
        let dtype = head.hidden.dtype().into();
        let forward = B::head_forward(head, save, options.statistics);

        if let Some(slope) = forward.slope.clone() {
            let prepared = FrozenHead.prepare::<C>([hidden.node()]).compute_bound();
            return match prepared.stateful() {
                OpsKind::Tracked(prep) => {
                    with_statistics::<B, C>(forward, |output| prep.finish((slope, dtype), output))
                }
                OpsKind::UnTracked(prep) => {
                    with_statistics::<B, C>(forward, |output| prep.finish(output))
                }
            };
        }
        let guards = [hidden.node(), weight.node(), bias.node()];
        match TrainableHead
            .prepare::<C>(guards)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let state = TrainableState {
                    inputs: [&hidden, &weight, &bias].map(|tensor| prep.checkpoint(tensor)),
                    targets,
                    normalizer: forward.normalizer.clone(),
                    tiles: forward.tiles.clone(),
                    options,
                };
                with_statistics::<B, C>(forward, |output| prep.finish(state, output))
            }
            OpsKind::UnTracked(prep) => {
                with_statistics::<B, C>(forward, |output| prep.finish(output))
            }
        }
    }

    fn logits_log_probs(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: BoolTensor<Self>,
        statistics: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (logits, guard) = logits.into_parts();
        let prepared = Logits.prepare::<C>([guard]).compute_bound();
        let forward =
            B::logits_forward(logits.clone(), targets.clone(), counted.clone(), statistics);
        match prepared.stateful() {
            OpsKind::Tracked(prep) => {
                let state = LogitsState {
                    logits,
                    targets,
                    counted,
                    normalizer: forward.normalizer.clone(),
                };
                with_statistics::<B, C>(forward, |output| prep.finish(state, output))
            }
            OpsKind::UnTracked(prep) => {
                with_statistics::<B, C>(forward, |output| prep.finish(output))
            }
        }
    }

    fn head_kl(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        reference_hidden: FloatTensor<Self>,
        reference_weight: FloatTensor<Self>,
        reference_bias: FloatTensor<Self>,
        targets: IntTensor<Self>,
        options: KlOptions,
    ) -> FloatTensor<Self> {
        let [policy, reference] = [
            ([&hidden, &weight, &bias], options.policy),
            (
                [&reference_hidden, &reference_weight, &reference_bias],
                options.reference,
            ),
        ]
        .map(|([hidden, weight, bias], options)| {
            let plain = |tensor: &FloatTensor<Self>| tensor.primitive().clone();
            let [hidden, weight, bias] = [plain(hidden), plain(weight), plain(bias)];
            Head::<B>::new(hidden, weight, bias, targets.clone(), options)
        });
        let kl = B::kl_forward(policy, reference.clone());
        let guards = [hidden.node(), weight.node(), bias.node()];
        match TwoHeads.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = TwoHeadsState {
                    inputs: [&hidden, &weight, &bias].map(|tensor| prep.checkpoint(tensor)),
                    reference,
                    options: options.policy,
                };
                prep.finish(state, kl)
            }
            OpsKind::UnTracked(prep) => prep.finish(kl),
        }
    }
}

/// Both outputs; the by-products have no gradient.
fn with_statistics<B: Backend, C: CheckpointStrategy>(
    forward: Forward<B>,
    finish: impl FnOnce(FloatTensor<B>) -> FloatTensor<Autodiff<B, C>>,
) -> (FloatTensor<Autodiff<B, C>>, FloatTensor<Autodiff<B, C>>) {
    let (log_probs, statistics) = super::outputs(forward);
    let statistics = <Autodiff<B, C> as burn::backend::AutodiffBackend>::from_inner(statistics);
    (finish(log_probs), statistics)
}

/// `∂L/∂h_n = g_n · ∂log p_n/∂h_n`, which is linear in the g_n that only the backward knows.
#[derive(Debug)]
struct FrozenHead;

impl<B: Backend> Backward<B, 1> for FrozenHead {
    type State = (FloatTensor<B>, FloatDType);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (slope, dtype) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| {
            let [rows] = grad.shape().dims();
            let grad = B::float_reshape(grad, Shape::new([rows, 1]));
            B::float_cast(B::float_mul(slope, grad), dtype)
        });
    }
}

#[derive(Debug)]
struct TrainableHead;

#[derive(Debug, Clone)]
struct TrainableState<B: Backend> {
    inputs: [NodeId; 3],
    targets: IntTensor<B>,
    normalizer: FloatTensor<B>,
    tiles: Vec<FloatTensor<B>>,
    options: HeadOptions,
}

impl<B: LogProbKernel> Backward<B, 3> for TrainableHead {
    type State = TrainableState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let state = ops.state;
        let [hidden, weight, bias] = state
            .inputs
            .map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let head = Head::new(hidden, weight, bias, state.targets, state.options);
        let grad = grads.consume::<B>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let found = B::head_backward(head, state.normalizer, state.tiles, grad, wanted);
        register::<B>(
            ops.parents.map(|parent| parent.map(|node| node.id)),
            found,
            grads,
        );
    }
}

#[derive(Debug)]
struct TwoHeads;

#[derive(Debug, Clone)]
struct TwoHeadsState<B: Backend> {
    inputs: [NodeId; 3],
    /// A constant.
    reference: Head<B>,
    options: HeadOptions,
}

impl<B: LogProbKernel> Backward<B, 3> for TwoHeads {
    type State = TwoHeadsState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let state = ops.state;
        let [hidden, weight, bias] = state
            .inputs
            .map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let targets = state.reference.targets.clone();
        let policy = Head::new(hidden, weight, bias, targets, state.options);
        let grad = grads.consume::<B>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let found = B::kl_backward(policy, state.reference, grad, wanted);
        register::<B>(
            ops.parents.map(|parent| parent.map(|node| node.id)),
            found,
            grads,
        );
    }
}

/// Hands each parent its gradient.
fn register<B: Backend>(
    parents: [Option<NodeId>; 3],
    found: HeadGradients<B>,
    grads: &mut Gradients,
) {
    for (parent, gradient) in parents.into_iter().zip(found) {
        if let Some((parent, gradient)) = parent.zip(gradient) {
            grads.register::<B>(parent, gradient);
        }
    }
}

#[derive(Debug)]
struct Logits;

/// The logits themselves, not a checkpoint of them: the only handle lets the backward write into
/// their buffer.
#[derive(Debug, Clone)]
struct LogitsState<B: Backend> {
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    counted: BoolTensor<B>,
    normalizer: FloatTensor<B>,
}

impl<B: LogProbKernel> Backward<B, 1> for Logits {
    type State = LogitsState<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let state = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| {
            B::logits_backward(
                state.logits,
                state.targets,
                state.counted,
                state.normalizer,
                grad,
            )
        });
    }
}
