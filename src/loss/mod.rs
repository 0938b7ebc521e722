//! The objectives, one file each. They never import each other.
//!
//! Loss (black), and how hard it pushes the chosen log-probability up (blue) and the rejected one
//! down (orange), against the reward margin; `UPDATE_DOCS=1 cargo test --test suite atlas` draws it.
//!
#![doc = include_str!("../../docs/atlas.svg")]

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
pub use hdpo::{HdpoLoss, HdpoLossConfig};
pub use hinge::{HingeLoss, HingeLossConfig};
pub use info_nca::{InfoNcaLoss, InfoNcaLossConfig};
pub use ipo::{IpoLoss, IpoLossConfig};
pub use kto::{ClassRatio, KlEstimate, KtoLoss, KtoLossConfig};
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
pub use simper::{SimperLoss, SimperLossConfig};
pub use simpo::{SimpoLoss, SimpoLossConfig};
pub use slic_hf::{SlicHfLoss, SlicHfLossConfig};
pub use sppo::{SppoLoss, SppoLossConfig};
pub use tdpo::{TdpoLoss, TdpoLossConfig};
pub use ties::{DavidsonLoss, DavidsonLossConfig, RaoKupperLoss, RaoKupperLossConfig};
pub use tpo::{TpoLoss, TpoLossConfig};
