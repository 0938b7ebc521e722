//! The objectives, one file each. They never import each other.

mod dpo;
mod ipo;
mod kto;
mod orpo;
mod rrhf;

pub use dpo::{DpoLoss, DpoLossConfig};
pub use ipo::{IpoLoss, IpoLossConfig};
pub use kto::{KlEstimate, KtoLoss, KtoLossConfig};
pub use orpo::{OrpoLoss, OrpoLossConfig};
pub use rrhf::{RrhfLoss, RrhfLossConfig};
