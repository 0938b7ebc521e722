//! The divergence of two models per token: against plain f64, and its laws.

use burn::tensor::DType;
use burn_preference::log_probs::Discrepancy;
use proptest::prelude::*;

use crate::problem::{How, LAYOUTS, TRAINABLE};
use crate::support::{cases, error, tolerance};
use crate::two_models::{KINDS, TwoModels, divergence, slope};

fn any_kind() -> impl Strategy<Value = Discrepancy> {
    prop_oneof![
        Just(Discrepancy::ForwardKl),
        Just(Discrepancy::ReverseKl),
        (0.01..0.99_f64).prop_map(Discrepancy::JensenShannon),
    ]
}

prop_compose! {
    fn any_models()(
        shape in (1_usize..4, 2_usize..6, 1_usize..40, 1_usize..20),
        seed in any::<u32>(),
        [ours_biased, theirs_biased] in any::<[bool; 2]>(),
        shaping in crate::head::any_shaping(),
        theirs in crate::head::any_shaping(),
    ) -> TwoModels {
        let (batch, time, vocab, width) = shape;
        let TwoModels { policy, reference } = TwoModels::new([batch, time, vocab, width], seed.into());
        let (policy, reference) = (policy.shaped(shaping), reference.shaped(theirs));
        TwoModels {
            policy: if ours_biased { policy } else { policy.without_bias() },
            reference: if theirs_biased { reference } else { reference.without_bias() },
        }
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn two_heads_match_the_scalar_code(
        models in any_models(),
        kind in any_kind(),
        layout in prop::sample::select(&LAYOUTS[..]),
        (hidden, weight) in any::<(bool, bool)>(),
        (checkpointed, from_logits) in any::<(bool, bool)>(),
    ) {
        for dtype in [DType::F32, DType::F64] {
            let how = How { dtype, layout, hidden, weight, checkpointed, from_logits, ..TRAINABLE };
            models.check(kind, how, tolerance(dtype));
        }
    }

    /// The scalar code's own gradient.
    #[test]
    fn slopes_of_the_scalar_code(
        ours in prop::collection::vec(-4.0..4.0_f64, 5),
        theirs in prop::collection::vec(-4.0..4.0_f64, 5),
        kind in any_kind(),
    ) {
        let slopes = slope(kind, &ours, &theirs);
        for v in 0..5 {
            let at = |d: f64| {
                let mut moved = ours.clone();
                moved[v] += d;
                divergence(kind, &moved, &theirs)
            };
            prop_assert!(error(slopes[v], crate::scalar::slope(at)) < 1e-8);
        }
    }
}

#[test]
fn every_kind_of_every_gradient() {
    let models = TwoModels::new([2, 5, 23, 6], 4);
    for kind in KINDS {
        for (hidden, weight) in [(true, true), (true, false), (false, true), (false, false)] {
            for from_logits in [false, true] {
                let how = How {
                    hidden,
                    weight,
                    from_logits,
                    ..TRAINABLE
                };
                models.check(kind, how, 1e-11);
            }
        }
    }
}
