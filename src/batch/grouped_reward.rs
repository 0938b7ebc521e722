use std::collections::BTreeMap;

use crate::error::InvalidInput;

/// The reward of a sample, beside what the other samples of its prompt got: all that an
/// [`Advantage`](crate::part::Advantage) is made of.
///
/// The samples of a prompt are a *group*. Its numbers are computed once, on the host and in f64, of
/// all samples of a step: a part of the step then takes the rewards of its rows, and a group may be
/// cut anywhere.
///
/// ```
/// use burn_preference::batch::GroupedReward;
///
/// // Two samples of one prompt, three of another.
/// let rewards = GroupedReward::of_groups(&[1.0, 0.0, 5.0, 5.0, 5.0], &[0, 0, 1, 1, 1])?;
/// assert_eq!((rewards[0].reward(), rewards[0].deviation()), (1.0, 0.5));
/// assert!((rewards[0].std() - 0.5_f64.sqrt()).abs() < 1e-12);
/// assert_eq!((rewards[2].deviation(), rewards[2].std()), (0.0, 0.0)); // it teaches nothing
/// # Ok::<(), burn_preference::InvalidInput>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupedReward {
    reward: f64,
    deviation: f64,
    std: f64,
    size: usize,
    std_of_all: f64,
}

impl GroupedReward {
    /// The reward of each sample with the numbers of its group. `groups` has a number for each
    /// sample, equal for those of one prompt; groups may differ in size, and need not stand
    /// together.
    ///
    /// # Errors
    ///
    /// There is not one group per reward, a reward is not a number that f32 holds, or a group has
    /// one sample: nothing says whether it is better than another.
    pub fn of_groups(rewards: &[f64], groups: &[usize]) -> Result<Vec<Self>, InvalidInput> {
        if rewards.len() != groups.len() {
            let expected = format!("{}, one per reward", rewards.len());
            return Err(InvalidInput::new("groups", expected, groups.len()));
        }
        let fits = |reward: &f64| reward.abs() <= f64::from(f32::MAX);
        if let Some(place) = rewards.iter().position(|reward| !fits(reward)) {
            let found = format!("{} at {place}", rewards[place]);
            let expected = "a finite number that f32 holds";
            return Err(InvalidInput::new("rewards", expected, found));
        }
        let mut members: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for (reward, group) in rewards.iter().zip(groups) {
            members.entry(*group).or_default().push(*reward);
        }
        if let Some((group, _)) = members.iter().find(|(_, members)| members.len() < 2) {
            let expected = "two samples of each prompt at least";
            let found = format!("one of the group {group}");
            return Err(InvalidInput::new("groups", expected, found));
        }
        let of_group: BTreeMap<usize, (Spread, usize)> = members
            .into_iter()
            .map(|(group, members)| (group, (Spread::of(&members), members.len())))
            .collect();
        let all = Spread::of(rewards);
        let grouped = rewards.iter().zip(groups).map(|(&reward, group)| {
            let (spread, size) = of_group[group];
            Self {
                reward,
                deviation: spread.deviation(reward),
                std: spread.std,
                size,
                std_of_all: all.std,
            }
        });
        Ok(grouped.collect())
    }

    /// The reward itself.
    pub fn reward(&self) -> f64 {
        self.reward
    }

    /// The reward minus the mean of its group: exactly 0 where all rewards of the group are equal.
    pub fn deviation(&self) -> f64 {
        self.deviation
    }

    /// Standard deviation of the group's rewards, √(Σ (r − r̄)²/(n − 1)), as TRL takes it.
    pub fn std(&self) -> f64 {
        self.std
    }

    /// Number of samples of the group.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Standard deviation of all rewards that were given together, whatever their groups.
    pub fn std_of_all(&self) -> f64 {
        self.std_of_all
    }
}

/// Mean, as a shift of the first value, and standard deviation.
#[derive(Debug, Clone, Copy)]
struct Spread {
    first: f64,
    /// Mean − first: 0 where all are equal, which Σ r/n need not be.
    shift: f64,
    std: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let first = values.first().copied().unwrap_or_default();
        let shift = values.iter().map(|x| x - first).sum::<f64>() / values.len().max(1) as f64;
        let spread = Self {
            first,
            shift,
            std: 0.0,
        };
        let squares = values.iter().map(|x| spread.deviation(*x).powi(2));
        let variance = squares.sum::<f64>() / values.len().saturating_sub(1).max(1) as f64;
        Self {
            std: variance.sqrt(),
            ..spread
        }
    }

    fn deviation(&self, value: f64) -> f64 {
        (value - self.first) - self.shift
    }
}
