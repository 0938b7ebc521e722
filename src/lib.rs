//! Preference-optimisation objectives for [Burn](https://burn.dev).
//! stub docs

pub mod batch;
pub mod error;
mod hyperparameter;
pub mod log_probs;
pub mod loss;
pub mod math;
pub mod metrics;
pub mod modifier;
pub mod objective;
pub mod part;
pub mod reference;

pub use batch::{
    Batch, Pair, PolicyPair, Ranked, ReferencedPair, Unpaired, WithBaseline, WithMargin, WithNll,
};
pub use error::{InvalidHyperparameter, InvalidInput};
pub use log_probs::{LogProbs, RelativeLogProbs, SequenceLogProbs, TokenLogProbs};
pub use loss::{
    DpoLoss, DpoLossConfig, IpoLoss, IpoLossConfig, KlEstimate, KtoLoss, KtoLossConfig, OrpoLoss,
    OrpoLossConfig, RrhfLoss, RrhfLossConfig,
};
pub use metrics::{BatchMetrics, Metrics};
pub use modifier::SftTerm;
pub use objective::{LossOutput, Objective};
pub use part::{Divergence, LabelNoise, NllNormalization, Normalization};
pub use reference::Frozen;
