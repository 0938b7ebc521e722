//! Clipping by the norm of all gradients together, and sums of them over workers.

use std::thread;
use std::time::Duration;

use burn::module::{Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};
use burn_preference::training::gradients::{clip_by_global_norm, sum_gradients};
use burn_preference::training::reducer::Threads;
use proptest::prelude::*;

use crate::support::device::dtypes;
use crate::support::{ZipEqual, cases, device, to_vec};

#[derive(Module, Debug)]
struct Model {
    first: Param<Tensor<1>>,
    second: Param<Tensor<2>>,
}

impl Model {
    fn new(shapes: (usize, [usize; 2]), device: &Device) -> Self {
        Self {
            first: Param::from_tensor(Tensor::zeros([shapes.0], device)),
            second: Param::from_tensor(Tensor::zeros(shapes.1, device)),
        }
    }

    /// These gradients: `first`'s, then `second`'s.
    fn grads(&self, values: &[f64], dtype: DType) -> GradientsParams {
        let n = self.first.val().shape().num_elements();
        let of = |values: &[f64]| Tensor::<1>::from_data(values, (&device(), dtype));
        let mut grads = GradientsParams::new();
        let [rows, columns] = self.second.val().dims();
        grads.register(self.first.id, of(&values[..n]));
        grads.register(self.second.id, of(&values[n..]).reshape([rows, columns]));
        grads
    }

    fn clipped(&self, values: &[f64], dtype: DType, max_norm: f64) -> (Vec<f64>, f64) {
        let grads = self.grads(values, dtype);
        let (grads, norm) = clip_by_global_norm(grads, self, max_norm).unwrap();
        let first = grads.get::<1>(self.first.id).unwrap();
        let second = grads.get::<2>(self.second.id).unwrap();
        assert_eq!((first.dtype(), second.dtype()), (dtype, dtype));
        assert_eq!(grads.len(), 2);
        ([to_vec(first), to_vec(second)].concat(), to_vec(norm)[0])
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn as_its_formula(
        values in prop::collection::vec(-3.0..3.0_f64, 7),
        exponent in -12..12_i32,
        max_norm in 0.01..10.0_f64,
    ) {
        let scale = 10_f64.powi(exponent);
        let values: Vec<f64> = values.into_iter().map(|x| x * scale).collect();
        let model = Model::new((3, [2, 2]), &device());
        for dtype in crate::support::device::wide_dtypes() {
            let (clipped, norm) = model.clipped(&values, dtype, max_norm);
            let expected = values.iter().map(|x| x * x).sum::<f64>().sqrt();
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs().max(1e-30);
            prop_assert!(close(norm, expected), "{norm} {expected}");
            let factor = (max_norm / expected).min(1.0);
            for (ours, value) in clipped.iter().zip_equal(&values) {
                prop_assert!(close(*ours, value * factor), "{ours} {value} {factor}");
            }
        }
    }
}

#[test]
fn half_precision_and_extremes() {
    let model = Model::new((2, [1, 1]), &device());
    for dtype in dtypes() {
        // The sum of squares, 2.5e9, is beyond f16.
        let (clipped, norm) = model.clipped(&[3e4, 0.0, 4e4], dtype, 5.0);
        assert!((norm / 5e4 - 1.0).abs() < 4e-3, "{dtype:?} {norm}");
        for (ours, expected) in clipped.iter().zip_equal([3.0, 0.0, 4.0]) {
            assert!((ours - expected).abs() < 2e-2, "{dtype:?} {ours}");
        }
    }
    // Squares beyond f32, and below it.
    let (clipped, norm) = model.clipped(&[3e30, 0.0, 4e30], DType::F32, 1.0);
    assert!((norm / 5e30 - 1.0).abs() < 1e-6);
    assert!((clipped[0] - 0.6).abs() < 1e-6);
    let (clipped, norm) = model.clipped(&[3e-30, 0.0, 4e-30], DType::F32, 1.0);
    assert!((norm / 5e-30 - 1.0).abs() < 1e-6);
    assert!((clipped[0] / 3e-30 - 1.0).abs() < 1e-6, "short ones stay");

    let (clipped, norm) = model.clipped(&[0.0; 3], DType::F32, 1.0);
    assert_eq!((clipped, norm), (vec![0.0; 3], 0.0));
    for broken in [f64::NAN, f64::INFINITY] {
        let (clipped, norm) = model.clipped(&[1.0, broken, 1.0], DType::F32, 1.0);
        assert!(
            !norm.is_finite() && clipped.iter().all(|x| x.is_nan()),
            "{clipped:?}"
        );
    }
}

#[test]
fn tied_parameters_count_once_and_absent_ones_not_at_all() {
    #[derive(Module, Debug)]
    struct Tied {
        embedding: Embedding,
        again: Embedding,
        frozen: Linear,
    }
    let embedding = EmbeddingConfig::new(1, 1).init(&device());
    let model = Tied {
        again: embedding.clone(),
        frozen: LinearConfig::new(1, 1).init(&device()),
        embedding,
    };
    let id = model.embedding.weight.id;
    assert_eq!(id, model.again.weight.id);
    let mut grads = GradientsParams::new();
    grads.register(id, Tensor::<2>::from_floats([[8.0]], &device()));
    let (grads, norm) = clip_by_global_norm(grads, &model, 2.0).unwrap();
    assert_eq!(to_vec(norm), [8.0]);
    assert_eq!(to_vec(grads.get::<2>(id).unwrap()), [2.0]);
    assert_eq!(grads.len(), 1);

    let (grads, norm) = clip_by_global_norm(GradientsParams::new(), &model, 2.0).unwrap();
    assert!(grads.is_empty());
    assert_eq!(to_vec(norm), [0.0]);
}

#[test]
fn a_bound_is_a_number() {
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let model = Model::new((1, [1, 1]), &device());
        let error = clip_by_global_norm(GradientsParams::new(), &model, bad);
        assert_eq!(error.err().unwrap().name(), "max_norm");
    }
}

/// What each of two workers has after the sum of these gradients.
fn summed(model: &Model, own: [GradientsParams; 2]) -> [GradientsParams; 2] {
    let workers = Threads::new(2, Duration::from_mins(1)).unwrap();
    thread::scope(|scope| {
        let sum = |grads| {
            let workers = workers.clone();
            scope.spawn(move || sum_gradients(grads, model, &workers).unwrap())
        };
        own.map(sum).map(|worker| worker.join().unwrap())
    })
}

#[test]
fn gradients_of_workers_add_up_in_their_number_type() {
    let model = Model::new((2, [2, 3]), &device());
    let values = |offset: f64| (0..8).map(|i| offset + f64::from(i)).collect::<Vec<_>>();
    for dtype in dtypes() {
        let own = [1.0, 0.5].map(|offset| model.grads(&values(offset), dtype));
        let expected: Vec<f64> = (0..8).map(|i| 1.5 + f64::from(2 * i)).collect();
        for grads in summed(&model, own) {
            let first = grads.get::<1>(model.first.id).unwrap();
            let second = grads.get::<2>(model.second.id).unwrap();
            assert_eq!((first.dtype(), second.dtype()), (dtype, dtype));
            assert_eq!(second.dims(), [2, 3]);
            assert_eq!([to_vec(first), to_vec(second)].concat(), expected);
        }
    }
}

/// One worker has no gradient of a parameter, as without examples; nobody has one of the other.
#[test]
fn gradients_that_one_worker_has() {
    let model = Model::new((2, [2, 3]), &device());
    let mut own = [GradientsParams::new(), GradientsParams::new()];
    own[1].register(model.first.id, Tensor::<1>::ones([2], &device()));
    for grads in summed(&model, own) {
        assert_eq!(grads.len(), 1);
        assert_eq!(to_vec(grads.get::<1>(model.first.id).unwrap()), [1.0, 1.0]);
    }
    // Parameters without elements, and none at all.
    let empty = Model::new((0, [0, 3]), &device());
    let own = [(); 2].map(|()| empty.grads(&[], DType::F32));
    assert!(summed(&empty, own).iter().all(|grads| grads.len() == 2));
    let none = [GradientsParams::new(), GradientsParams::new()];
    assert!(summed(&empty, none).iter().all(GradientsParams::is_empty));
}
