//! Batches check what they are made of, and split as they say.

use burn_preference::{
    PolicyPair, Ranked, Unpaired, WithBaseline, WithMargin, WithNll, batch::Batch,
};

use crate::support::{bools, f64s, leaf, sequence, to_vec};

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
