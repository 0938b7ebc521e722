//! Modifiers of objectives: an SFT term, weights, mixtures. Each is an objective again, so they nest.
//!
//! | you want | take |
//! |---|---|
//! | to imitate the chosen completion as well | [`SftTerm`] |
//! | a weight per example, such as WPO's ([`wpo_weights`]) | [`Weighted`] |
//! | a sum of objectives, such as MPO | [`Mixture`] |
//! | a reference-free objective in a mixture with others | [`PolicySide`] |
//! | an objective that does not use a column, on a batch that has it | [`WithoutColumn`] |
//!
//! Changes of token log-probabilities, before they are summed, are methods of
//! [`RelativeTokenLogProbs`](crate::RelativeTokenLogProbs) and [`Pair`](crate::Pair).

mod adapt;
mod mixture;
mod sft;
mod weighted;

pub use adapt::{PolicySide, WithoutColumn};
pub use mixture::Mixture;
pub use sft::{SftTarget, SftTerm};
pub use weighted::{Weighted, wpo_weights};
