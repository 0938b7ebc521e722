//! The objectives: a config, the objective that it builds, and a loss for every example of a batch.
//!
//! ```text
//! DpoLossConfig::new().with_beta(0.1)  ─→  .init()  ─→  .forward(batch)  ─→  LossOutput
//! fields with defaults                     DpoLoss                           losses, rewards
//! ```
//!
//! # All objectives
//!
//! The second column is the name in a [config file](crate::config). "pairs" and the other words of
//! the third column are types of [`batch`](crate::batch); what follows a `+` is optional. "The whole
//! batch" means that parts of a step [do not add up](crate::Objective::whole_batch).
//!
#![doc = include_str!("../../docs/rustdoc/objectives.md")]
//!
//! # Symbols
//!
//! | symbol | meaning |
//! |---|---|
//! | w, l | as an index: the chosen completion of a pair (the winner), and the rejected one (the loser) |
//! | i, j, k | as an index: candidates of a list |
//! | π, π° | policy and reference; ° marks what belongs to the reference |
//! | ℓ, ℓ° | log-probability of a completion after its prompt: the sum over its tokens, in nats |
//! | ℓ̄ | ℓ / length: the mean per token |
//! | ρ | ℓ − ℓ°, the log-ratio, in nats |
//! | g(ρ) | what is compared instead of ρ: a [`Divergence`](crate::part::Divergence). By default g(ρ) = ρ |
//! | Δ | ρ_w − ρ_l, in nats |
//! | β | reward per nat; a large β keeps the policy near the reference |
//! | r | a reward: of a model, of the data, or the implicit one, such as β·ρ |
//! | h | r_w − r_l, the margin of the rewards |
//! | q | the implicit reward of a candidate of a list |
//! | s | a score that the data gives a completion |
//! | μ | the sampler: the model that drew a sample |
//! | A | the advantage of a sample over the others of its prompt |
//! | w | (no index) π/μ, the ratio of policy and sampler |
//! | NLL | −ℓ̄ of the completion to imitate; see [`NllNormalization`](crate::part::NllNormalization) |
//! | σ(x) | 1 / (1 + e^(−x)) |
//! | ln, e | the natural logarithm, and its base |
//! | (x)⁺ | max(x, 0) |
//! | KL(p ‖ q) | Kullback–Leibler divergence, in nats |
//! | P, E | probability and expectation |
//!
//! Other letters are fields or columns of one objective (γ, λ, z₀, …), and its page explains them.
//!
//! # Curves
//!
//! The loss (black) against the reward margin, and how hard it pushes the chosen log-probability up
//! (blue) and the rejected one down (orange). A negative weight pushes the other way.
//!
#![doc = include_str!("../../docs/atlas.svg")]
//!
//! # Rewards
//!
//! The rewards of [`LossOutput`](crate::LossOutput) are for logs. They are β (IPO's τ) times what
//! the loss compares: the log-ratio or the log-probability, after a divergence or a normalisation.
//! What else acts on the margin is not in them: a target margin, DPOP's penalty, R-DPO's length,
//! DPO-Shift's λ, BCO's δ, β-DPO's β of the batch, TDPO's KL. The objectives say so, and what their
//! authors log. TRL logs β·ρ under any divergence or normalisation. The rewards of a reward model
//! are what the model says. Samples have none: their objective has the
//! [ratios](crate::batch::Ratios) of policy and sampler in its output.
//!
//! # Extremes
//!
//! - **Finite log-probabilities give finite losses and gradients** where the true value fits the
//!   number type. In f32, log-probabilities of −1e5 and reward margins of ±1e4 do, for every
//!   objective. Exponents are clamped to 80, and IPO's square to 1e18 (f32), as the objectives say.
//!   A square beyond the type is ∞.
//! - **A NaN that goes in comes out**, in the example that it belongs to: a NaN of a
//!   log-probability, of a score in a list, of a column. The NaN of an absent candidate or of a
//!   token that does not count does not come out.
//! - **±∞ gives the limit, ±∞ or NaN**, never another number.
//! - **An empty completion** has sum, mean and length 0, and no gradient: its log-ratio is 0. The
//!   objective decides what that means: DPO of two empty completions is ln 2.
//! - **An empty batch** has mean and sum 0.
//! - **Hyperparameters are numbers that f32 holds.** 1e-300 would be 0 there, and is an error.
//!
//! WGSL, the shading language of `wgpu`, lets a device assume that there is no NaN: there the device
//! decides about the second point. And `ln(1 + u)` has an absolute error of 1e-7 there: a loss of
//! 1e-9 may read 0, but its gradient keeps its digits.
//!
//! # What they were checked against
//!
#![doc = include_str!("../../docs/rustdoc/checked.md")]
//!
//! In the repository, search `tests/` for the name of an objective: its tests are rows in tables of
//! all objectives, which CONTRIBUTING.md lists.

mod alpha_po;
mod aot;
mod apo;
mod asft;
mod bco;
mod beta_dpo;
mod cal_dpo;
mod chipo;
mod cpo;
mod discopop;
mod dpo;
mod dpo_shift;
mod dpop;
mod exo;
mod exo_list;
mod gpo;
mod grpo;
mod hdpo;
mod hinge;
mod info_nca;
mod ipo;
mod kto;
mod lipo;
mod nca;
mod npo;
mod orpo;
mod plackett_luce;
mod pro;
mod rdpo;
mod rebel;
mod reward;
mod rpo;
mod rrhf;
mod scalar_reward;
mod sdpo;
mod sft;
mod simper;
mod simpo;
mod slic_hf;
mod sppo;
mod tdpo;
mod ties;
mod tpo;

pub use alpha_po::{AlphaPoLoss, AlphaPoLossConfig};
pub use aot::{AotLoss, AotLossConfig};
pub use apo::{ApoDownLoss, ApoDownLossConfig, ApoZeroLoss, ApoZeroLossConfig};
pub use asft::{AsftLoss, AsftLossConfig};
pub use bco::{BcoLoss, BcoLossConfig};
pub use beta_dpo::{BetaDpoLoss, BetaDpoLossConfig};
pub use cal_dpo::{CalDpoLoss, CalDpoLossConfig};
pub use chipo::{ChipoLoss, ChipoLossConfig};
pub use cpo::{CpoLoss, CpoLossConfig};
pub use discopop::{DiscopopLoss, DiscopopLossConfig};
pub use dpo::{DpoLoss, DpoLossConfig};
pub use dpo_shift::{DpoShiftLoss, DpoShiftLossConfig};
pub use dpop::{DpopLoss, DpopLossConfig};
pub use exo::{ExoPairLoss, ExoPairLossConfig};
pub use exo_list::{ExoListLoss, ExoListLossConfig};
pub use gpo::{GpoLoss, GpoLossConfig};
pub use grpo::{GrpoLoss, GrpoLossConfig};
pub use hdpo::{HdpoLoss, HdpoLossConfig};
pub use hinge::{HingeLoss, HingeLossConfig};
pub use info_nca::{InfoNcaLoss, InfoNcaLossConfig};
pub use ipo::{IpoLoss, IpoLossConfig};
pub use kto::{KtoLoss, KtoLossConfig};
pub use lipo::{LipoLoss, LipoLossConfig};
pub use nca::{NcaListLoss, NcaListLossConfig, NcaLoss, NcaLossConfig};
pub use npo::{NpoLoss, NpoLossConfig, SimnpoLoss, SimnpoLossConfig};
pub use orpo::{OrpoLoss, OrpoLossConfig};
pub use plackett_luce::{PlackettLuceLoss, PlackettLuceLossConfig};
pub use pro::{ProLoss, ProLossConfig};
pub use rdpo::{RdpoLoss, RdpoLossConfig};
pub use rebel::{RebelLoss, RebelLossConfig};
pub use reward::{
    BradleyTerryLoss, BradleyTerryLossConfig, BradleyTerryTiesLoss, BradleyTerryTiesLossConfig,
    RewardRankingLoss, RewardRankingLossConfig,
};
pub use rpo::{RpoLoss, RpoLossConfig};
pub use rrhf::{RrhfLoss, RrhfLossConfig};
pub use scalar_reward::{
    AstarPoLoss, AstarPoLossConfig, DroLoss, DroLossConfig, QrpoLoss, QrpoLossConfig,
};
pub use sdpo::{SdpoLoss, SdpoLossConfig};
pub use sft::{SftLoss, SftLossConfig};
pub use simper::{SimperLoss, SimperLossConfig};
pub use simpo::{SimpoLoss, SimpoLossConfig};
pub use slic_hf::{SlicHfLoss, SlicHfLossConfig};
pub use sppo::{SppoLoss, SppoLossConfig};
pub use tdpo::{TdpoLoss, TdpoLossConfig};
pub use ties::{DavidsonLoss, DavidsonLossConfig, RaoKupperLoss, RaoKupperLossConfig};
pub use tpo::{TpoLoss, TpoLossConfig};
