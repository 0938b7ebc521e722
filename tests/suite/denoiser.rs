//! Diffusion-DPO and Diffusion-KTO, as the example `denoiser` has them, against the formulas of the
//! papers and of Diffusion-DPO's code, in plain f64.

use burn::tensor::{Bool, DType, Tensor, TensorData};
use burn_preference::{
    DpoLossConfig, KtoLossConfig, Normalization, Objective, Pair, RelativeLogProbs, Unpaired,
    WithBaseline,
};

use crate::denoiser_likelihood::log_probs;
use crate::support::ZipEqual;
use crate::support::device::device;

/// The noise ε of two examples, shared by chosen and rejected, policy and reference.
const NOISE: [[f64; 2]; 2] = [[1.0, 0.0], [-0.5, 2.0]];
/// What policy and reference predict of it: chosen, then rejected.
const POLICY: [[[f64; 2]; 2]; 2] = [[[0.5, 0.0], [0.0, 1.5]], [[1.0, 1.0], [-0.5, 1.0]]];
const REFERENCE: [[[f64; 2]; 2]; 2] = [[[0.0, 0.0], [-0.5, 1.0]], [[1.0, 0.5], [0.0, 0.5]]];

/// ‖ε − ε̂‖² of one example.
fn error(predicted: [[f64; 2]; 2], row: usize) -> f64 {
    let difference = |i: usize| NOISE[row][i] - predicted[row][i];
    difference(0).powi(2) + difference(1).powi(2)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn tensor(values: [[f64; 2]; 2]) -> Tensor<2> {
    Tensor::from_data(TensorData::from(values), (&device(), DType::F64))
}

fn relative() -> Pair<RelativeLogProbs> {
    let side = |side: usize| {
        let [ours, theirs] = [POLICY, REFERENCE].map(|of| {
            let log_probs = log_probs(tensor(of[side]), tensor(NOISE));
            log_probs.expect("shapes fit")
        });
        ours.relative_to(theirs).expect("shapes fit")
    };
    Pair::new(side(0), side(1)).expect("shapes fit")
}

fn check(losses: Tensor<1>, expected: &[f64]) {
    let found: Vec<f64> = losses.into_data().iter().collect();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip_equal(expected) {
        assert!(
            (found - expected).abs() < 1e-12,
            "{found} is not {expected}"
        );
    }
}

/// 2311.12908, Eq. 14, with ω(λ_t) = ½:
/// −ln σ(−βTω·((‖ε−ε_w‖² − ‖ε−ε°_w‖²) − (‖ε−ε_l‖² − ‖ε−ε°_l‖²))).
#[test]
fn diffusion_dpo_is_equation_14() {
    let (beta, timesteps, omega) = (0.02, 100.0, 0.5);
    let expected = [0, 1].map(|row| {
        let excess = |side: usize| error(POLICY[side], row) - error(REFERENCE[side], row);
        -sigmoid(-beta * timesteps * omega * (excess(0) - excess(1))).ln()
    });
    let dpo = DpoLossConfig::new().with_beta(beta * timesteps).init();
    check(dpo.forward(relative()).losses(), &expected);
    // By hand: errors ¼ and 1, 1 and ¼, so that h = 2·½·1.5.
    assert!((expected[0] - 0.201_413_277_982_752_46).abs() < 1e-15);
}

/// The authors' code: −½·β times the difference of errors that are means over all numbers of a
/// latent.
#[test]
fn diffusion_dpo_of_means_is_the_authors_code() {
    let beta = 4.0;
    let expected = [0, 1].map(|row| {
        let mean = |predicted: [[f64; 2]; 2]| error(predicted, row) / 2.0;
        let ours = mean(POLICY[0]) - mean(POLICY[1]);
        let theirs = mean(REFERENCE[0]) - mean(REFERENCE[1]);
        -sigmoid(-0.5 * beta * (ours - theirs)).ln()
    });
    let dpo = DpoLossConfig::new().with_beta(beta);
    let dpo = dpo.with_normalization(Normalization::Mean).init();
    check(dpo.forward(relative()).losses(), &expected);
}

/// 2404.04465 with the utility U = σ: 1 − U(±(β·ρ − Q)), Q = β·z₀.
#[test]
fn diffusion_kto_is_one_minus_the_utility() {
    let (beta, z0) = (2.0, 0.25);
    let rho =
        |side: usize, row: usize| -0.5 * (error(POLICY[side], row) - error(REFERENCE[side], row));
    let value = |side: usize, row: usize| beta * rho(side, row) - beta * z0;
    let expected = [
        1.0 - sigmoid(value(0, 0)),
        1.0 - sigmoid(value(0, 1)),
        1.0 - sigmoid(-value(1, 0)),
        1.0 - sigmoid(-value(1, 1)),
    ];
    let kto = KtoLossConfig::new().with_beta(beta).init();
    let device = device();
    let baseline = || Tensor::<1>::from_data(TensorData::from([z0]), (&device, DType::F64));
    let Pair {
        chosen, rejected, ..
    } = relative();
    for (side, label, expected) in [
        (chosen, true, &expected[..2]),
        (rejected, false, &expected[2..]),
    ] {
        let desirable = Tensor::<1, Bool>::from_bool([label; 2], &device);
        let batch = Unpaired::new(side, desirable).expect("shapes fit");
        let batch = WithBaseline::new(batch, baseline()).expect("a scalar");
        check(kto.forward(batch).losses(), expected);
    }
}

/// A NaN of the network is not left out.
#[test]
fn a_nan_prediction_is_a_nan_loss() {
    let mut predicted = POLICY[0];
    predicted[1][0] = f64::NAN;
    let found = log_probs(tensor(predicted), tensor(NOISE)).expect("shapes fit");
    let found: Vec<f64> = found.sum().into_data().iter().collect();
    assert!(found[0].is_finite() && found[1].is_nan());
}
