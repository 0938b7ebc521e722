//! The same kernels behind Burn's fusion. Each call is one opaque operation.
//!
//! The code inside an operation works on plain tensors. So fusion neither splits a kernel nor sees
//! a slice of the vocabulary. Fusion panics on such slices.

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_fusion::custom::{
    CustomOpIr, HandleContainer, OperationFn, OperationIr, StreamId, TensorIr,
};
use burn_fusion::{ExecutionError, Fusion, FusionBackend, FusionRuntime, FusionTensor};

use crate::kernel::backend::LogProbKernel;
use crate::kernel::discrepancy::{Comparison, Discrepancy, KEPT};
use crate::kernel::forward::{Forward, HeadGradients, STATISTICS, Save};
use crate::kernel::generic::wide;
use crate::kernel::head::{Head, HeadForm};

type Handles<B> =
    HandleContainer<<<B as FusionBackend>::FusionRuntime as FusionRuntime>::FusionHandle>;
type Fused<B> = FusionTensor<<B as FusionBackend>::FusionRuntime>;

/// Registers an operation. When the stream reaches the operation, `run` computes the outputs from
/// the inputs. `outputs` describes the shape and type of each output.
fn later<B: FusionBackend>(
    id: &'static str,
    inputs: Vec<Fused<B>>,
    outputs: Vec<(Shape, DType)>,
    run: impl Fn(&mut Handles<B>, &CustomOpIr) -> Vec<FloatTensor<B>> + Send + Sync + 'static,
) -> std::vec::IntoIter<Fused<B>> {
    let client = inputs[0].client.clone();
    let describe = |(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype);
    let outputs: Vec<TensorIr> = outputs.into_iter().map(describe).collect();
    let inputs: Vec<TensorIr> = inputs.into_iter().map(FusionTensor::into_ir).collect();
    let description = CustomOpIr::new(id, &inputs, &outputs);
    let operation = OperationIr::Custom(description.clone());
    let run = OperationFn(
        move |handles: &mut Handles<B>| -> Result<(), ExecutionError> {
            let outputs = run(handles, &description);
            for (description, output) in description.outputs.iter().zip(outputs) {
                handles.register_float_tensor::<B>(&description.id, output);
            }
            Ok(())
        },
    );
    let client = client.register(StreamId::current(), operation, run);
    client.into_iter().collect::<Vec<_>>().into_iter()
}

/// [`later`] for a forward over `rows` rows. `slope` is the shape of the slope, if the caller asks
/// for the slope.
fn forward<B: FusionBackend>(
    id: &'static str,
    inputs: Vec<Fused<B>>,
    (rows, slope, statistics): (usize, Option<Shape>, bool),
    run: impl Fn(&mut Handles<B>, &[TensorIr]) -> Forward<B> + Send + Sync + 'static,
) -> Forward<Fusion<B>> {
    // The first input is the logits or the hidden states.
    let dtype = wide(inputs[0].dtype);
    let with_slope = slope.is_some();
    let by_products = statistics.then(|| Shape::new([rows, STATISTICS]));
    let shapes = [Shape::new([rows]), Shape::new([rows, 2])];
    let shapes = shapes.into_iter().chain(by_products).chain(slope);
    let outputs = shapes.map(|shape| (shape, dtype)).collect();
    let mut outputs = later::<B>(id, inputs, outputs, move |handles, description| {
        let forward = run(handles, &description.inputs);
        let first = [forward.log_probs, forward.normalizer];
        let more = forward.statistics.into_iter().chain(forward.slope);
        first.into_iter().chain(more).collect()
    });
    let mut next = || outputs.next().expect("as many as described");
    Forward {
        log_probs: next(),
        normalizer: next(),
        statistics: statistics.then(&mut next),
        slope: with_slope.then(&mut next),
        tiles: Vec::new(),
    }
}

/// The head, from the first four inputs of an operation.
fn head_of<B: FusionBackend>(
    handles: &mut Handles<B>,
    inputs: &[TensorIr],
    form: HeadForm,
) -> Head<B> {
    Head {
        hidden: handles.get_float_tensor::<B>(&inputs[0]),
        weight: handles.get_float_tensor::<B>(&inputs[1]),
        bias: handles.get_float_tensor::<B>(&inputs[2]),
        targets: handles.get_int_tensor::<B>(&inputs[3]),
        form,
    }
}

fn tensors_of<B: FusionBackend>(head: Head<Fusion<B>>) -> [Fused<B>; 4] {
    [head.hidden, head.weight, head.bias, head.targets]
}

/// The heads of policy and reference, from the first eight inputs of an operation.
fn heads_of<B: FusionBackend>(
    handles: &mut Handles<B>,
    inputs: &[TensorIr],
    [policy, reference]: [HeadForm; 2],
) -> [Head<B>; 2] {
    let policy = head_of::<B>(handles, &inputs[..4], policy);
    [policy, head_of::<B>(handles, &inputs[4..8], reference)]
}

impl<B: FusionBackend + LogProbKernel> LogProbKernel for Fusion<B> {
    fn head_forward(head: Head<Self>, save: Save, statistics: bool) -> Forward<Self> {
        // Tiles do not leave the opaque operation, so the forward keeps none.
        let save = match save {
            Save::Tiles(_) => Save::Tiles(0),
            save => save,
        };
        let form = head.form;
        let slope = (save == Save::Slope).then(|| head.hidden.shape.clone());
        let outputs = (head.hidden.shape[0], slope, statistics);
        let inputs = tensors_of(head).into();
        forward::<B>(
            "log_probs::head_forward",
            inputs,
            outputs,
            move |handles, inputs| {
                let head = head_of::<B>(handles, inputs, form);
                B::head_forward(head, save, statistics)
            },
        )
    }

    fn head_backward(
        head: Head<Self>,
        normalizer: FloatTensor<Self>,
        _: Vec<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
        wanted: [bool; 3],
    ) -> HeadGradients<Self> {
        let of = |tensor: &Fused<B>| (tensor.shape.clone(), tensor.dtype);
        let all = [of(&head.hidden), of(&head.weight), of(&head.bias)];
        let outputs = all.into_iter().zip(wanted).filter(|(_, wanted)| *wanted);
        let outputs = outputs.map(|(output, _)| output).collect();
        let form = head.form;
        let inputs = tensors_of(head)
            .into_iter()
            .chain([normalizer, grad])
            .collect();
        let run = move |handles: &mut Handles<B>, description: &CustomOpIr| {
            let inputs = &description.inputs;
            let head = head_of::<B>(handles, inputs, form);
            let normalizer = handles.get_float_tensor::<B>(&inputs[4]);
            let grad = handles.get_float_tensor::<B>(&inputs[5]);
            let gradients = B::head_backward(head, normalizer, Vec::new(), grad, wanted);
            gradients.into_iter().flatten().collect()
        };
        let mut gradients = later::<B>("log_probs::head_backward", inputs, outputs, run);
        wanted.map(|wanted| wanted.then(|| gradients.next().expect("as many as described")))
    }

    fn head_comparison(
        kind: Discrepancy,
        policy: Head<Self>,
        reference: Head<Self>,
        slope: bool,
    ) -> Comparison<Self> {
        let dtype = wide(policy.hidden.dtype);
        let rows = policy.hidden.shape[0];
        let of_slope = slope.then(|| (policy.hidden.shape.clone(), dtype));
        let shapes = [Shape::new([rows]), Shape::new([rows, KEPT])];
        let outputs = shapes.map(|shape| (shape, dtype)).into_iter();
        let outputs = outputs.chain(of_slope).collect();
        let forms = [policy.form, reference.form];
        let inputs = tensors_of(policy).into_iter().chain(tensors_of(reference));
        let run = move |handles: &mut Handles<B>, description: &CustomOpIr| {
            let [policy, reference] = heads_of::<B>(handles, &description.inputs, forms);
            let found = B::head_comparison(kind, policy, reference, slope);
            let first = [found.discrepancy, found.kept];
            first.into_iter().chain(found.slope).collect()
        };
        let id = "log_probs::head_comparison";
        let mut outputs = later::<B>(id, inputs.collect(), outputs, run);
        let mut next = || outputs.next().expect("as many as described");
        Comparison {
            discrepancy: next(),
            kept: next(),
            slope: slope.then(&mut next),
        }
    }

    fn head_comparison_backward(
        kind: Discrepancy,
        policy: Head<Self>,
        reference: Head<Self>,
        kept: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        wanted: [bool; 3],
    ) -> HeadGradients<Self> {
        let of = |tensor: &Fused<B>| (tensor.shape.clone(), tensor.dtype);
        let all = [of(&policy.hidden), of(&policy.weight), of(&policy.bias)];
        let outputs = all.into_iter().zip(wanted).filter(|(_, wanted)| *wanted);
        let outputs = outputs.map(|(output, _)| output).collect();
        let forms = [policy.form, reference.form];
        let inputs = tensors_of(policy).into_iter().chain(tensors_of(reference));
        let inputs = inputs.chain([kept, grad]).collect();
        let run = move |handles: &mut Handles<B>, description: &CustomOpIr| {
            let inputs = &description.inputs;
            let [policy, reference] = heads_of::<B>(handles, inputs, forms);
            let kept = handles.get_float_tensor::<B>(&inputs[8]);
            let grad = handles.get_float_tensor::<B>(&inputs[9]);
            let gradients =
                B::head_comparison_backward(kind, policy, reference, kept, grad, wanted);
            gradients.into_iter().flatten().collect()
        };
        let mut gradients = later::<B>("log_probs::head_comparison_backward", inputs, outputs, run);
        wanted.map(|wanted| wanted.then(|| gradients.next().expect("as many as described")))
    }

    fn logits_forward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: BoolTensor<Self>,
        statistics: bool,
    ) -> Forward<Self> {
        let outputs = (logits.shape[0], None, statistics);
        let inputs = vec![logits, targets, counted];
        forward::<B>(
            "log_probs::logits_forward",
            inputs,
            outputs,
            move |handles, inputs| {
                let logits = handles.get_float_tensor::<B>(&inputs[0]);
                let targets = handles.get_int_tensor::<B>(&inputs[1]);
                let counted = handles.get_bool_tensor::<B>(&inputs[2]);
                B::logits_forward(logits, targets, counted, statistics)
            },
        )
    }

    fn logits_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: BoolTensor<Self>,
        normalizer: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let outputs = vec![(logits.shape.clone(), logits.dtype)];
        let run = move |handles: &mut Handles<B>, description: &CustomOpIr| {
            let inputs = &description.inputs;
            let logits = handles.get_float_tensor::<B>(&inputs[0]);
            let targets = handles.get_int_tensor::<B>(&inputs[1]);
            let counted = handles.get_bool_tensor::<B>(&inputs[2]);
            let normalizer = handles.get_float_tensor::<B>(&inputs[3]);
            let grad = handles.get_float_tensor::<B>(&inputs[4]);
            vec![B::logits_backward(
                logits, targets, counted, normalizer, grad,
            )]
        };
        let inputs = vec![logits, targets, counted, normalizer, grad];
        let mut gradient = later::<B>("log_probs::logits_backward", inputs, outputs, run);
        gradient.next().expect("one, as described")
    }

    fn logits_comparison(
        kind: Discrepancy,
        policy: FloatTensor<Self>,
        reference: FloatTensor<Self>,
        counted: BoolTensor<Self>,
    ) -> Comparison<Self> {
        let dtype = wide(policy.dtype);
        let rows = policy.shape[0];
        let shapes = [Shape::new([rows]), Shape::new([rows, KEPT])];
        let outputs = shapes.map(|shape| (shape, dtype)).into();
        let run = move |handles: &mut Handles<B>, description: &CustomOpIr| {
            let inputs = &description.inputs;
            let policy = handles.get_float_tensor::<B>(&inputs[0]);
            let reference = handles.get_float_tensor::<B>(&inputs[1]);
            let counted = handles.get_bool_tensor::<B>(&inputs[2]);
            let found = B::logits_comparison(kind, policy, reference, counted);
            vec![found.discrepancy, found.kept]
        };
        let inputs = vec![policy, reference, counted];
        let mut outputs = later::<B>("log_probs::logits_comparison", inputs, outputs, run);
        let mut next = || outputs.next().expect("as many as described");
        Comparison {
            discrepancy: next(),
            kept: next(),
            slope: None,
        }
    }

    fn logits_comparison_backward(
        kind: Discrepancy,
        policy: FloatTensor<Self>,
        reference: FloatTensor<Self>,
        counted: BoolTensor<Self>,
        kept: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let outputs = vec![(policy.shape.clone(), policy.dtype)];
        let run = move |handles: &mut Handles<B>, description: &CustomOpIr| {
            let inputs = &description.inputs;
            let policy = handles.get_float_tensor::<B>(&inputs[0]);
            let reference = handles.get_float_tensor::<B>(&inputs[1]);
            let counted = handles.get_bool_tensor::<B>(&inputs[2]);
            let kept = handles.get_float_tensor::<B>(&inputs[3]);
            let grad = handles.get_float_tensor::<B>(&inputs[4]);
            vec![B::logits_comparison_backward(
                kind, policy, reference, counted, kept, grad,
            )]
        };
        let inputs = vec![policy, reference, counted, kept, grad];
        let id = "log_probs::logits_comparison_backward";
        let mut gradient = later::<B>(id, inputs, outputs, run);
        gradient.next().expect("one, as described")
    }
}
