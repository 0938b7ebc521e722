//! Batches check what they are made of, and split as they say.

use burn::tensor::{DType, Tensor};
use burn_preference::tokens::{Padding, Sequence, TokenBatch};
use burn_preference::{
    BradleyTerryLossConfig, Objective, PolicyPair, Ranked, RewardPair, Unpaired, WithBaseline,
    WithMargin, WithNll, batch::Batch,
};

use crate::support::{bools, device, dtypes, f64s, floats, leaf, sequence, to_vec};

#[test]
fn a_concatenated_forward_splits_into_chosen_and_rejected() {
    let all = sequence(f64s(&[-1.0, -2.0, -3.0, -4.0]), &[1, 2, 3, 4]);
    let pair = PolicyPair::from_concatenated(&all).unwrap();
    assert_eq!(to_vec(pair.chosen.sum()), [-1.0, -2.0]);
    assert_eq!(to_vec(pair.rejected.sum()), [-3.0, -4.0]);
    assert_eq!(to_vec(pair.rejected.lengths()), [3.0, 4.0]);
    assert_eq!(pair.len(), 2);
    assert!(!pair.is_empty());

    let odd = PolicyPair::from_concatenated(&sequence(f64s(&[-1.0; 3]), &[1; 3])).unwrap_err();
    assert_eq!(
        odd.to_string(),
        "`rows`: expected an even number of rows: chosen, then rejected, found 3"
    );
}

#[test]
fn candidates_are_consecutive_rows() {
    let all = sequence(f64s(&[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]), &[1; 6]);
    let lists = all.clone().split_candidates(3).unwrap();
    assert_eq!(lists.sum().dims(), [2, 3]);
    assert_eq!(to_vec(lists.sum().narrow(0, 1, 1)), [-4.0, -5.0, -6.0]);
    for candidates in [0, 4] {
        let error = all.clone().split_candidates(candidates).unwrap_err();
        assert_eq!(error.found(), "6");
        assert!(error.expected().contains(&candidates.to_string()));
    }
}

#[test]
fn batch_sizes_are_checked() {
    let two = || sequence(f64s(&[-1.0, -2.0]), &[1, 1]);
    let three = || sequence(f64s(&[-1.0; 3]), &[1; 3]);
    let pair = || PolicyPair::new(two(), two()).unwrap();
    let name = |e: burn_preference::InvalidInput| e.name();
    assert_eq!(
        name(PolicyPair::new(two(), three()).unwrap_err()),
        "rejected"
    );
    assert_eq!(name(two().relative_to(three()).unwrap_err()), "reference");
    assert_eq!(
        name(Unpaired::new(two(), bools(&[true])).unwrap_err()),
        "desirable"
    );
    assert_eq!(
        name(WithMargin::new(pair(), f64s(&[0.0])).unwrap_err()),
        "margin"
    );
    assert_eq!(
        name(WithBaseline::new(pair(), f64s(&[0.0; 2])).unwrap_err()),
        "baseline"
    );
    assert_eq!(name(WithNll::new(pair(), three()).unwrap_err()), "nll_of");
    let lists = || two().split_candidates(2).unwrap();
    let scores = |n: usize| f64s(&vec![0.0; n]).reshape([1, n]);
    let present = |n: usize| bools(&vec![true; n]).reshape([1, n]);
    assert_eq!(
        name(Ranked::new(lists(), scores(3), present(2)).unwrap_err()),
        "scores"
    );
    assert_eq!(
        name(Ranked::new(lists(), scores(2), present(1)).unwrap_err()),
        "present"
    );
    assert_eq!(
        Ranked::new(lists(), scores(2), present(2)).unwrap().len(),
        1
    );
}

#[test]
fn a_reference_loses_its_graph() {
    let reference = sequence(leaf(&[-1.0]) * 2, &[1]);
    let relative = sequence(leaf(&[-3.0]), &[1])
        .relative_to(reference)
        .unwrap();
    assert!(!relative.reference().sum().is_autodiff());
    assert!(relative.policy().sum().is_tracked());
    assert_eq!(to_vec(relative.log_ratio()), [-1.0]);
}

/// The value at each row's last token, and its gradient there and nowhere else: what a model says
/// of padding is not read, NaN included.
#[test]
fn a_reward_stands_at_the_end() {
    let of = |prompt: &[u32], completion: &[u32]| Sequence::new(prompt, completion);
    let rows = vec![of(&[1], &[2, 3]), of(&[4], &[]), of(&[5], &[6])];
    let batch = TokenBatch::new(rows, Padding::new(0), &device()).unwrap();
    let values = [1.0, 2.0, 3.0, 4.0, f64::NAN, f64::NAN, 7.0, 8.0, f64::NAN];
    let leaf = leaf(&values);
    let ends = batch.at_end(leaf.clone().reshape([3, 3])).unwrap();
    assert_eq!(to_vec(ends.clone()), [3.0, 4.0, 8.0]);
    let grads = (ends * f64s(&[1.0, 2.0, 3.0])).sum().backward();
    let grads = to_vec(leaf.grad(&grads).unwrap());
    assert_eq!(grads, [0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 3.0, 0.0]);

    let error = batch.at_end(f64s(&values[..6]).reshape([3, 2]));
    assert_eq!(
        error.unwrap_err().to_string(),
        "`values`: expected shape [3, 3], found shape [3, 2]"
    );
    let empty = TokenBatch::new(vec![of(&[], &[])], Padding::new(0), &device()).unwrap();
    let error = empty.at_end(Tensor::zeros([1, 2], &device())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`sequences`: expected 1 to 2 tokens, found 0 in row 0"
    );
    let none = TokenBatch::new(vec![], Padding::new(0), &device()).unwrap();
    let ends = none.at_end(Tensor::zeros([0, 2], &device())).unwrap();
    assert_eq!(ends.dims(), [0]);
}

/// Rewards in half precision become f32 before anything is done to them.
#[test]
fn rewards_are_upcast() {
    for dtype in dtypes() {
        let says = RewardPair::new(floats(&[0.25], dtype), floats(&[-9.0], dtype)).unwrap();
        let output = BradleyTerryLossConfig::new().init().forward(says);
        let expected = match dtype {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        assert_eq!(output.losses().dtype(), expected);
        let loss = to_vec(output.losses())[0];
        assert!(
            (loss / (-9.25_f64).exp().ln_1p() - 1.0).abs() < 1e-5,
            "{loss}"
        );
    }
}
