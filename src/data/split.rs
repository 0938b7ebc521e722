use std::collections::BTreeMap;

use burn::data::dataset::Dataset;

use super::error::DataError;
use crate::error::InvalidInput;

/// Examples to train on and examples that are held out, by index.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Split {
    /// Indices of the examples to train on, in order.
    pub train: Vec<usize>,
    /// Indices of the examples to report on, in order.
    pub held_out: Vec<usize>,
    /// Number of groups to train on.
    pub train_groups: usize,
    /// Number of groups that are held out.
    pub held_out_groups: usize,
}

/// Splits a dataset so that examples of one group are on one side.
///
/// A conversation, a prompt or an annotator gives several examples: if some of them train, the
/// others are no test. `group` names an example's group, such as a field of
/// [`Example::columns`](super::Example::columns). The groups with the smallest hashes of `seed` and
/// name are held out, `share` of them, rounded: neither the order of the examples nor their number
/// decides that. Select the examples with Burn's `SelectionDataset`.
///
/// # Errors
///
/// `share` is outside \[0, 1\], or an example cannot be read.
pub fn split_by<I>(
    dataset: &impl Dataset<I>,
    share: f64,
    seed: u64,
    group: impl Fn(&I) -> String,
) -> Result<Split, DataError> {
    if !(0.0..=1.0).contains(&share) {
        return Err(InvalidInput::new("share", "a number in [0, 1]", share).into());
    }
    // By its hash, which is smaller than a prompt.
    let mut groups: BTreeMap<[u8; 32], Vec<usize>> = BTreeMap::new();
    for index in 0..dataset.len() {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(group(&dataset.get(index)?).as_bytes());
        let hash = *hasher.finalize().as_bytes();
        groups.entry(hash).or_default().push(index);
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of it"
    )]
    let held_out_groups = (share * groups.len() as f64).round() as usize;
    let mut split = Split {
        train_groups: groups.len() - held_out_groups,
        held_out_groups,
        ..Split::default()
    };
    for (place, (_, members)) in groups.into_iter().enumerate() {
        let side = if place < held_out_groups {
            &mut split.held_out
        } else {
            &mut split.train
        };
        side.extend(members);
    }
    split.train.sort_unstable();
    split.held_out.sort_unstable();
    Ok(split)
}
