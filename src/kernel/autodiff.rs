//! The backward, written by hand. Each operation is one node on the tape, and the node keeps only
//! what its backward needs.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, TensorMetadata};
use burn::tensor::{FloatDType, Shape};

use super::backend::LogProbKernel;
use super::choice;
use super::discrepancy::Discrepancy;
use super::forward::{Forward, HeadGradients};
use super::head::{Head, HeadForm};
use super::operation::{ComparisonOptions, HeadOptions, LogProbOps};

impl<B: LogProbKernel, C: CheckpointStrategy> LogProbOps for Autodiff<B, C> {
    fn head_log_probs(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        targets: IntTensor<Self>,
        options: HeadOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let tracked = [hidden.is_tracked(), weight.is_tracked(), bias.is_tracked()];
        let head = plain::<B, C>([&hidden, &weight, &bias], targets.clone(), options.form);
        let dtype = head.hidden.dtype().into();
        let gradient = head.weight.shape().num_elements() * head.weight.dtype().size();
        let save = choice::saved_for_backward(tracked, options.retained_bytes, gradient);
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
                    head: SavedHead {
                        inputs: [&hidden, &weight, &bias].map(|tensor| prep.checkpoint(tensor)),
                        targets,
                        form: options.form,
                    },
                    normalizer: forward.normalizer.clone(),
                    tiles: forward.tiles.clone(),
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

    fn head_discrepancy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        reference_hidden: FloatTensor<Self>,
        reference_weight: FloatTensor<Self>,
        reference_bias: FloatTensor<Self>,
        targets: IntTensor<Self>,
        options: ComparisonOptions,
    ) -> FloatTensor<Self> {
        let ComparisonOptions {
            kind,
            form,
            reference_form,
        } = options;
        let tracked = [hidden.is_tracked(), weight.is_tracked(), bias.is_tracked()];
        let policy = plain::<B, C>([&hidden, &weight, &bias], targets.clone(), form);
        let reference = [&reference_hidden, &reference_weight, &reference_bias];
        let reference = plain::<B, C>(reference, targets.clone(), reference_form);
        let dtype = policy.hidden.dtype().into();
        let slope = tracked == [true, false, false];
        let found = B::head_comparison(kind, policy, reference.clone(), slope);

        if let Some(slope) = found.slope {
            let prepared = FrozenHead.prepare::<C>([hidden.node()]).compute_bound();
            return match prepared.stateful() {
                OpsKind::Tracked(prep) => prep.finish((slope, dtype), found.discrepancy),
                OpsKind::UnTracked(prep) => prep.finish(found.discrepancy),
            };
        }
        let guards = [hidden.node(), weight.node(), bias.node()];
        match TwoHeads.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let policy = SavedHead {
                    inputs: [&hidden, &weight, &bias].map(|tensor| prep.checkpoint(tensor)),
                    targets,
                    form,
                };
                let state = TwoHeadsState {
                    kind,
                    policy,
                    reference,
                    kept: found.kept,
                };
                prep.finish(state, found.discrepancy)
            }
            OpsKind::UnTracked(prep) => prep.finish(found.discrepancy),
        }
    }

    fn logits_discrepancy(
        policy: FloatTensor<Self>,
        reference: FloatTensor<Self>,
        counted: BoolTensor<Self>,
        kind: Discrepancy,
    ) -> FloatTensor<Self> {
        let (policy, guard) = policy.into_parts();
        let reference = reference.into_primitive();
        let prepared = TwoLogits.prepare::<C>([guard]).compute_bound();
        let found = B::logits_comparison(kind, policy.clone(), reference.clone(), counted.clone());
        match prepared.stateful() {
            OpsKind::Tracked(prep) => {
                let state = TwoLogitsState {
                    kind,
                    policy,
                    reference,
                    counted,
                    kept: found.kept,
                };
                prep.finish(state, found.discrepancy)
            }
            OpsKind::UnTracked(prep) => prep.finish(found.discrepancy),
        }
    }
}

/// The head as plain tensors, without their nodes on the tape.
fn plain<B: Backend, C: CheckpointStrategy>(
    tensors: [&FloatTensor<Autodiff<B, C>>; 3],
    targets: IntTensor<B>,
    form: HeadForm,
) -> Head<B> {
    let [hidden, weight, bias] = tensors.map(|tensor| tensor.primitive().clone());
    Head::new(hidden, weight, bias, targets, form)
}

/// Both outputs. Only the log-probabilities are on the tape, because the by-products have no
/// gradient.
fn with_statistics<B: Backend, C: CheckpointStrategy>(
    forward: Forward<B>,
    finish: impl FnOnce(FloatTensor<B>) -> FloatTensor<Autodiff<B, C>>,
) -> (FloatTensor<Autodiff<B, C>>, FloatTensor<Autodiff<B, C>>) {
    let (log_probs, statistics) = forward.into_outputs();
    let statistics = <Autodiff<B, C> as burn::backend::AutodiffBackend>::from_inner(statistics);
    (finish(log_probs), statistics)
}

/// `∂L/∂h_n = g_n · ∂log p_n/∂h_n`. The second factor does not depend on `g_n`, so the forward
/// computes it as the slope. The backward then only multiplies the slope by `g_n`.
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

/// A head that a node saves. Hidden states, weight and bias are checkpoints.
#[derive(Debug, Clone)]
struct SavedHead<B: Backend> {
    inputs: [NodeId; 3],
    targets: IntTensor<B>,
    form: HeadForm,
}

impl<B: Backend> SavedHead<B> {
    fn restore(self, checkpointer: &mut Checkpointer) -> Head<B> {
        let [hidden, weight, bias] = self
            .inputs
            .map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        Head::new(hidden, weight, bias, self.targets, self.form)
    }
}

/// Registers the gradients of hidden states, weight and bias. `of` computes them from the state of
/// the node, the gradient of the node and the flags of the wanted gradients.
fn hand_out<B: Backend, S>(
    ops: Ops<S, 3>,
    grads: &mut Gradients,
    of: impl FnOnce(S, FloatTensor<B>, [bool; 3]) -> HeadGradients<B>,
) {
    let grad = grads.consume::<B>(&ops.node);
    let wanted = ops.parents.each_ref().map(Option::is_some);
    let gradients = of(ops.state, grad, wanted);
    for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
        if let Some((parent, gradient)) = parent.zip(gradient) {
            grads.register::<B>(parent.id, gradient);
        }
    }
}

#[derive(Debug)]
struct TrainableHead;

#[derive(Debug, Clone)]
struct TrainableState<B: Backend> {
    head: SavedHead<B>,
    normalizer: FloatTensor<B>,
    tiles: Vec<FloatTensor<B>>,
}

impl<B: LogProbKernel> Backward<B, 3> for TrainableHead {
    type State = TrainableState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        hand_out::<B, _>(ops, grads, |state, grad, wanted| {
            let head = state.head.restore(checkpointer);
            B::head_backward(head, state.normalizer, state.tiles, grad, wanted)
        });
    }
}

#[derive(Debug)]
struct TwoHeads;

/// The policy's head and the reference's head. The reference is a constant.
#[derive(Debug, Clone)]
struct TwoHeadsState<B: Backend> {
    kind: Discrepancy,
    policy: SavedHead<B>,
    reference: Head<B>,
    kept: FloatTensor<B>,
}

impl<B: LogProbKernel> Backward<B, 3> for TwoHeads {
    type State = TwoHeadsState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        hand_out::<B, _>(ops, grads, |state, grad, wanted| {
            let policy = state.policy.restore(checkpointer);
            let (kind, reference, kept) = (state.kind, state.reference, state.kept);
            B::head_comparison_backward(kind, policy, reference, kept, grad, wanted)
        });
    }
}

#[derive(Debug)]
struct TwoLogits;

#[derive(Debug, Clone)]
struct TwoLogitsState<B: Backend> {
    kind: Discrepancy,
    policy: FloatTensor<B>,
    reference: FloatTensor<B>,
    counted: BoolTensor<B>,
    kept: FloatTensor<B>,
}

impl<B: LogProbKernel> Backward<B, 1> for TwoLogits {
    type State = TwoLogitsState<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let state = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| {
            B::logits_comparison_backward(
                state.kind,
                state.policy,
                state.reference,
                state.counted,
                state.kept,
                grad,
            )
        });
    }
}

#[derive(Debug)]
struct Logits;

/// The state holds the logits themselves, not a checkpoint of the logits. If this is the only
/// handle, the backward can write into the buffer of the logits.
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
