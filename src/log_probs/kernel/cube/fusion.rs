//! The same behind Burn's fusion: one opaque operation a call.
//!
//! What runs inside sees plain tensors, so that fusion neither splits a kernel nor sees a slice of
//! the vocabulary, on which it panics.

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_fusion::custom::{
    CustomOpIr, HandleContainer, OperationFn, OperationIr, StreamId, TensorIr,
};
use burn_fusion::{ExecutionError, Fusion, FusionBackend, FusionRuntime, FusionTensor};

use super::super::{Forward, Head, HeadGradients, LogProbKernel, STATISTICS, Save};

type Handles<B> =
    HandleContainer<<<B as FusionBackend>::FusionRuntime as FusionRuntime>::FusionHandle>;
type Fused<B> = FusionTensor<<B as FusionBackend>::FusionRuntime>;

/// Runs `run` when the stream comes to it: from the inputs to as many outputs as described.
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
            let found = run(handles, &description);
            for (description, found) in description.outputs.iter().zip(found) {
                handles.register_float_tensor::<B>(&description.id, found);
            }
            Ok(())
        },
    );
    let client = client.register(StreamId::current(), operation, run);
    client.into_iter().collect::<Vec<_>>().into_iter()
}

fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 {
        DType::F64
    } else {
        DType::F32
    }
}

/// A head whose tensors are the first four inputs of an operation.
fn head_of<B: FusionBackend>(
    handles: &mut Handles<B>,
    inputs: &[TensorIr],
    like: &HeadOf,
) -> Head<B> {
    Head {
        hidden: handles.get_float_tensor::<B>(&inputs[0]),
        weight: handles.get_float_tensor::<B>(&inputs[1]),
        bias: handles.get_float_tensor::<B>(&inputs[2]),
        targets: handles.get_int_tensor::<B>(&inputs[3]),
        words_first: like.words_first,
        biased: like.biased,
        shaping: like.shaping,
    }
}

/// What of a head is no tensor.
#[derive(Debug, Clone, Copy)]
struct HeadOf {
    words_first: bool,
    biased: bool,
    shaping: super::super::Shaping,
}

fn parts<B: FusionBackend>(head: Head<Fusion<B>>) -> (Vec<Fused<B>>, HeadOf) {
    let of = HeadOf {
        words_first: head.words_first,
        biased: head.biased,
        shaping: head.shaping,
    };
    (vec![head.hidden, head.weight, head.bias, head.targets], of)
}

impl<B: FusionBackend + LogProbKernel> LogProbKernel for Fusion<B> {
    fn head_forward(head: Head<Self>, save: Save, statistics: bool) -> Forward<Self> {
        // What a backward would keep stays inside: nothing is kept.
        let save = match save {
            Save::Tiles(_) => Save::Tiles(0),
            save => save,
        };
        let dtype = wide(head.hidden.dtype);
        let rows = head.hidden.shape[0];
        let mut outputs = vec![(Shape::new([rows]), dtype), (Shape::new([rows, 2]), dtype)];
        if statistics {
            outputs.push((Shape::new([rows, STATISTICS]), dtype));
        }
        if save == Save::Slope {
            outputs.push((head.hidden.shape.clone(), dtype));
        }
        let (inputs, of) = parts(head);
        let run = move |handles: &mut Handles<B>, description: &CustomOpIr| {
            let head = head_of::<B>(handles, &description.inputs, &of);
            let found = B::head_forward(head, save, statistics);
            let first = [found.log_probs, found.normalizer];
            let more = found.statistics.into_iter().chain(found.slope);
            first.into_iter().chain(more).collect()
        };
        let mut found = later::<B>("log_probs::head_forward", inputs, outputs, run);
        let mut next = || found.next().expect("as many as described");
        Forward {
            log_probs: next(),
            normalizer: next(),
            statistics: statistics.then(&mut next),
            slope: (save == Save::Slope).then(&mut next),
            tiles: Vec::new(),
        }
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
        let (mut inputs, of) = parts(head);
        inputs.extend([normalizer, grad]);
        let run = move |handles: &mut Handles<B>, description: &CustomOpIr| {
            let inputs = &description.inputs;
            let head = head_of::<B>(handles, inputs, &of);
            let normalizer = handles.get_float_tensor::<B>(&inputs[4]);
            let grad = handles.get_float_tensor::<B>(&inputs[5]);
            let found = B::head_backward(head, normalizer, Vec::new(), grad, wanted);
            found.into_iter().flatten().collect()
        };
        let mut found = later::<B>("log_probs::head_backward", inputs, outputs, run);
        wanted.map(|wanted| wanted.then(|| found.next().expect("as many as described")))
    }

    fn logits_forward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: BoolTensor<Self>,
        statistics: bool,
    ) -> Forward<Self> {
        let (rows, dtype) = (logits.shape[0], wide(logits.dtype));
        let mut outputs = vec![(Shape::new([rows]), dtype), (Shape::new([rows, 2]), dtype)];
        if statistics {
            outputs.push((Shape::new([rows, STATISTICS]), dtype));
        }
        let run = move |handles: &mut Handles<B>, description: &CustomOpIr| {
            let inputs = &description.inputs;
            let logits = handles.get_float_tensor::<B>(&inputs[0]);
            let targets = handles.get_int_tensor::<B>(&inputs[1]);
            let counted = handles.get_bool_tensor::<B>(&inputs[2]);
            let found = B::logits_forward(logits, targets, counted, statistics);
            let first = [found.log_probs, found.normalizer];
            first.into_iter().chain(found.statistics).collect()
        };
        let inputs = vec![logits, targets, counted];
        let mut found = later::<B>("log_probs::logits_forward", inputs, outputs, run);
        let mut next = || found.next().expect("as many as described");
        Forward {
            log_probs: next(),
            normalizer: next(),
            statistics: statistics.then(&mut next),
            slope: None,
            tiles: Vec::new(),
        }
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
        let mut found = later::<B>("log_probs::logits_backward", inputs, outputs, run);
        found.next().expect("one, as described")
    }
}
