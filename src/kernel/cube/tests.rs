//! Tests for what the parity suite cannot see: limits that the shapes of that suite do not reach,
//! and the number of launches.
//!
//! The enabled feature decides the device: a GPU or a software device.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Cube, DispatchDevice, Flex, FlexDevice};
use burn::tensor::{DType, Device, TensorData};
use burn_cubecl::cubecl::future::block_on;
use burn_cubecl::cubecl::logging::{LaunchObservation, LaunchObserver};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::{CubeBackend, CubeDevice};

use super::head::{head_backward, head_comparison, head_comparison_backward, head_forward};
use crate::kernel::backend::LogProbKernel;
use crate::kernel::discrepancy::Discrepancy;
use crate::kernel::forward::{Forward, HeadGradients, Save};
use crate::kernel::generic;
use crate::kernel::head::{Head, HeadForm, Shaping};

fn device() -> CubeDevice {
    match Device::default().as_dispatch() {
        DispatchDevice::Cube(device) => device.clone(),
        other => panic!("{other:?} is no device of CubeCL"),
    }
}

/// Sixteenths from 0 to 1. Every number type holds these values exactly. All have the same sign, so
/// sums grow.
fn tensor<B: Backend>(shape: [usize; 2], dtype: DType, device: &B::Device) -> FloatTensor<B> {
    let values = (0..shape[0] * shape[1]).map(|i| (i * 7919 % 17) as f64 / 16.0);
    let data = TensorData::new(values.collect::<Vec<_>>(), shape);
    B::float_from_data(data.convert_dtype(dtype), device)
}

fn column<B: Backend>(values: &[f64], dtype: DType, device: &B::Device) -> FloatTensor<B> {
    B::float_from_data(TensorData::from(values).convert_dtype(dtype), device)
}

fn head<B: Backend>(
    [rows, width, vocab]: [usize; 3],
    [words_first, biased]: [bool; 2],
    dtype: DType,
    device: &B::Device,
) -> Head<B> {
    let shape = if words_first {
        [vocab, width]
    } else {
        [width, vocab]
    };
    let form = HeadForm {
        words_first,
        biased,
        shaping: Shaping::NONE,
    };
    Head::new(
        tensor::<B>([rows, width], dtype, device),
        tensor::<B>(shape, dtype, device),
        column::<B>(&vec![0.25; vocab], dtype, device),
        B::int_from_data(TensorData::from(vec![3_i32; rows].as_slice()), device),
        form,
    )
}

fn numbers<B: Backend>(tensor: FloatTensor<B>) -> Vec<f64> {
    let data = block_on(B::float_into_data(tensor)).expect("a device that answers");
    data.iter::<f64>().collect()
}

/// One row has a large gradient and many rows have small ones. If f16 added the small gradients one
/// by one to the large one, each of them would be lost.
#[test]
fn blocks_of_rows_are_summed_in_f32() {
    let (shape, most_rows) = ([256, 8, 20], 4);
    let mut grads = vec![0.0078125; shape[0]];
    grads[0] = 128.0;
    let device = device();
    for dtype in [DType::F32, DType::F16] {
        for words_first in [true, false] {
            let ours = head::<CubeBackend>(shape, [words_first, true], dtype, &device);
            let normalizer = into_contiguous(head_forward(&ours, false, false).normalizer);
            let grad = column::<CubeBackend>(&grads, DType::F32, &device);
            let ours = head_backward(&ours, &normalizer, &grad, [true; 3], most_rows);

            let plain = head::<Flex>(shape, [words_first, true], DType::F64, &FlexDevice);
            let forward = generic::head_forward(plain.clone(), Save::Tiles(0), false);
            let grad = column::<Flex>(&grads, DType::F64, &FlexDevice);
            let plain =
                generic::head_backward(plain, forward.normalizer, Vec::new(), grad, [true; 3]);

            let digits = if dtype == DType::F16 { 1e-3 } else { 1e-5 };
            for (ours, plain) in ours.into_iter().zip(plain) {
                let ours = numbers::<CubeBackend>(ours.expect("wanted"));
                let plain = numbers::<Flex>(plain.expect("wanted"));
                assert_eq!(ours.len(), plain.len());
                let largest = plain.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
                for (a, b) in ours.iter().zip(&plain) {
                    assert!((a - b).abs() <= digits * largest, "{dtype:?}: {a} and {b}");
                }
            }
        }
    }
}

/// The backward of two models in blocks of four rows, against the generic steps in f64.
#[test]
fn a_comparison_in_blocks_of_rows() {
    let device = device();
    let (shape, theirs) = ([19, 8, 20], [19, 5, 20]);
    let grads: Vec<f64> = (0..19_i32).map(|row| f64::from(row) / 8.0 - 1.0).collect();
    for kind in [
        Discrepancy::ForwardKl,
        Discrepancy::ReverseKl,
        Discrepancy::JensenShannon(0.3),
    ] {
        for dtype in [DType::F32, DType::F16] {
            let [ours, their_head] =
                [shape, theirs].map(|shape| head::<CubeBackend>(shape, [true; 2], dtype, &device));
            let found = head_comparison(kind, &ours, &their_head, false);
            let grad = column::<CubeBackend>(&grads, DType::F32, &device);
            let kept = into_contiguous(found.kept);
            let of = [&kept, &grad];
            let ours = head_comparison_backward(kind, &ours, &their_head, of, [true; 3], 4);

            let [plain, their_head] = [shape, theirs]
                .map(|shape| head::<Flex>(shape, [true; 2], DType::F64, &FlexDevice));
            let expected = generic::head_comparison(kind, &plain, &their_head, false);
            let grad = column::<Flex>(&grads, DType::F64, &FlexDevice);
            let kept = expected.kept;
            let plain = generic::head_comparison_backward(
                kind,
                &plain,
                &their_head,
                &kept,
                &grad,
                [true; 3],
            );

            let digits = if dtype == DType::F16 { 2e-3 } else { 1e-5 };
            let values = numbers::<CubeBackend>(found.discrepancy).into_iter();
            for (a, b) in values.zip(numbers::<Flex>(expected.discrepancy)) {
                assert!((a - b).abs() <= 1e-5 * b.max(1e-3), "{kind:?}: {a} and {b}");
            }
            for (ours, plain) in ours.into_iter().zip(plain) {
                let ours = numbers::<CubeBackend>(ours.expect("wanted"));
                let plain = numbers::<Flex>(plain.expect("wanted"));
                assert_eq!(ours.len(), plain.len());
                let largest = plain.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
                assert!(largest > 0.0);
                for (a, b) in ours.iter().zip(&plain) {
                    assert!((a - b).abs() <= digits * largest, "{kind:?}: {a} and {b}");
                }
            }
        }
    }
}

#[derive(Default)]
struct Launches(AtomicUsize);

impl LaunchObserver for Launches {
    fn launched(&self, _: &'static str) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Number of kernels that `call` launches.
fn launches_of<T>(device: &CubeDevice, call: impl FnOnce() -> T) -> usize {
    Cube::sync(device).expect("a device that answers");
    let launches = Arc::new(Launches::default());
    let watching = LaunchObservation::new(launches.clone());
    let outputs = call();
    Cube::sync(device).expect("a device that answers");
    drop((watching, outputs));
    launches.0.load(Ordering::Relaxed)
}

/// One line of the table: a forward and, after [`Save::Tiles`], its backward.
struct Call {
    name: &'static str,
    save: Save,
    statistics: bool,
}

/// Forward and backward of a head.
type Kernel = (
    fn(Head<Cube>, Save, bool) -> Forward<Cube>,
    fn(
        Head<Cube>,
        FloatTensor<Cube>,
        Vec<FloatTensor<Cube>>,
        FloatTensor<Cube>,
        [bool; 3],
    ) -> HeadGradients<Cube>,
);

impl Call {
    fn run(
        &self,
        (forward, backward): Kernel,
        head: Head<Cube>,
        grad: FloatTensor<Cube>,
    ) -> impl Sized + use<> {
        let forward = forward(head.clone(), self.save, self.statistics);
        let normalizer = forward.normalizer.clone();
        let wanted = [true, true, false];
        let backward = matches!(self.save, Save::Tiles(_))
            .then(|| backward(head, normalizer, Vec::new(), grad, wanted));
        (forward, backward)
    }

    /// Bytes per logit that the kernels read and write, and bytes per logit of the generic steps
    /// without fusion. The numbers are counted from the code: each read or write of a block counts
    /// once.
    fn bytes(&self, dtype: DType) -> [usize; 2] {
        let (wide, narrow) = (4, dtype.size());
        // A cast between half precision and f32 reads one type and writes the other. The product
        // writes the logits, and a cast then widens half precision.
        let cast = if narrow < wide { narrow + wide } else { 0 };
        let logits = narrow + cast;
        // The steps are maximum, differences, powers and sum.
        let forward = logits + 6 * wide;
        match self.save {
            // The product writes the logits, and one kernel reads them.
            Save::Nothing if !self.statistics => [2 * wide, forward],
            // The softmax comes on top, then 5, 4, 10 and 1 more for entropy, Σp², top-1 and mean.
            Save::Nothing => [2 * wide, forward + 22 * wide],
            // The gradient is written in place or in half precision. The product of gradient and
            // words reads the gradient.
            Save::Slope => [3 * wide + 2 * narrow, forward + 2 * wide + cast + narrow],
            // The backward computes the logits again, then their gradient. The products of this
            // gradient with words and with hidden states read it twice.
            Save::Tiles(_) => [
                4 * wide + 3 * narrow,
                forward + logits + 8 * wide + cast + 2 * narrow,
            ],
        }
    }
}

/// The table of `scripts/gpu/launches.sh`.
#[test]
#[ignore = "takes minutes on a software device"]
fn fewer_launches_and_bytes_than_the_generic_steps() {
    let device = device();
    let shape @ [rows, width, vocab] = [1024, 16, 128_256];
    println!("{rows} rows of {width} numbers, {vocab} words; bytes are computed, without fusion\n");
    println!("| call | numbers | launches | of the generic steps | bytes a logit | theirs |");
    println!("|---|---|---|---|---|---|");
    let call = |name, save, statistics| Call {
        name,
        save,
        statistics,
    };
    let kernels: Kernel = (Cube::head_forward, Cube::head_backward);
    let steps: Kernel = (generic::head_forward, generic::head_backward);
    for call in [
        call("reference", Save::Nothing, false),
        call("with statistics", Save::Nothing, true),
        call("frozen head", Save::Slope, false),
        call("trained head, forward and backward", Save::Tiles(0), false),
    ] {
        for dtype in [DType::F32, DType::F16] {
            let head = head::<Cube>(shape, [true, false], dtype, &device);
            let grad = column::<Cube>(&vec![1.0; rows], DType::F32, &device);
            let (again, and_grad) = (head.clone(), grad.clone());
            let ours = launches_of(&device, || call.run(kernels, head, grad));
            let theirs = launches_of(&device, || call.run(steps, again, and_grad));
            let [bytes, their_bytes] = call.bytes(dtype);
            println!(
                "| {} | {dtype:?} | {ours} | {theirs} | {bytes} | {their_bytes} |",
                call.name
            );
            assert!(ours < theirs && bytes < their_bytes);
        }
    }
    println!();
}
