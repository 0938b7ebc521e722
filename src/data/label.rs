//! Labels: the types that say how the completions of an example are judged.

use std::fmt;

use sealed::LabelRef;

use crate::batch::GroupedReward;

/// The label of a pair: the first completion was preferred to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preference;

/// The label of an unpaired completion: true if it is desirable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Desirable(pub bool);

/// The labels of a ranked list: one score per candidate, higher is better.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores(pub Vec<f64>);

/// The label of a demonstration: the policy imitates the completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demonstration;

/// The label of a sample: a completion that a model drew, the sampler, from the policy's own prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The reward among those of the samples of the same prompt.
    pub reward: GroupedReward,
    /// ln μ of every token id of the completion, nats.
    pub log_probs: Vec<f64>,
}

/// The label of a group: the samples of a prompt with their rewards, and what the sampler read and
/// drew.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// A reward per completion, higher is better.
    pub rewards: Vec<f64>,
    /// Token ids of the prompt, as the sampler read it.
    pub prompt_ids: Vec<u32>,
    /// Token ids of each completion, as they were drawn: other ids may have the same text.
    pub ids: Vec<Vec<u32>>,
    /// ln μ of each of these ids, nats.
    pub log_probs: Vec<Vec<f64>>,
}

/// The label of a prompt without completions, to which a policy is to write some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptOnly;

/// Whether it is finite, on the host as on a device.
pub(super) fn fits_f32(number: f64) -> bool {
    number.abs() <= f64::from(f32::MAX)
}

/// A label of completions: [`Preference`], [`Desirable`], [`Scores`] or [`Demonstration`]. It is sealed.
pub trait Labels: sealed::Labels + Clone + fmt::Debug + Send + Sync + 'static {}

impl<L: sealed::Labels + Clone + fmt::Debug + Send + Sync + 'static> Labels for L {}

pub(super) mod sealed {
    pub trait Labels {
        fn label(&self) -> LabelRef<'_>;
    }

    /// A label of any kind.
    pub enum LabelRef<'a> {
        Preference,
        Desirable(bool),
        Scores(&'a [f64]),
        Demonstration,
    }

    impl LabelRef<'_> {
        /// A number per completion: equal examples have the same completions with the same numbers,
        /// in any order.
        pub fn numbers(&self) -> Vec<f64> {
            match self {
                Self::Preference => vec![1.0, 0.0],
                Self::Desirable(desirable) => vec![f64::from(u8::from(*desirable))],
                Self::Scores(scores) => scores.to_vec(),
                Self::Demonstration => vec![1.0],
            }
        }
    }
}

impl sealed::Labels for Preference {
    fn label(&self) -> LabelRef<'_> {
        LabelRef::Preference
    }
}

impl sealed::Labels for Desirable {
    fn label(&self) -> LabelRef<'_> {
        LabelRef::Desirable(self.0)
    }
}

impl sealed::Labels for Scores {
    fn label(&self) -> LabelRef<'_> {
        LabelRef::Scores(&self.0)
    }
}

impl sealed::Labels for Demonstration {
    fn label(&self) -> LabelRef<'_> {
        LabelRef::Demonstration
    }
}
