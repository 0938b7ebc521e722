//! Adapters of a decoder: new ones, merged ones, and frozen weights of few bits beside them.

use burn::module::{Module, Param};
use burn::tensor::quantization::{Calibration, QuantScheme, compute_q_params, compute_range};
use thiserror::Error;

use super::decoder::Decoder;
use super::names::all_projections;

/// The projections of a layer, as Hugging Face calls them.
pub const TARGETS: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

/// The name of a projection that no layer has.
#[derive(Debug, Error)]
#[error("`{0}`: no projection of this model; there are {TARGETS:?}")]
pub struct UnknownTarget(pub String);

/// Rank, scale and targets of new adapters.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraOptions {
    /// Number of columns of A and of rows of B.
    pub rank: usize,
    /// α of α/rank·A·B, which is added to a weight.
    pub alpha: f64,
    /// Names of the projections that get an adapter, of [`TARGETS`].
    pub targets: Vec<String>,
}

/// The last part of a name such as `self_attn.q_proj`.
fn target(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

impl Decoder {
    /// Adds new adapters, which alone are trained.
    ///
    /// # Errors
    ///
    /// A target is no projection of a layer.
    pub fn with_adapters(self, options: &LoraOptions) -> Result<Self, UnknownTarget> {
        let unknown = options
            .targets
            .iter()
            .find(|name| !TARGETS.contains(&name.as_str()));
        if let Some(name) = unknown {
            return Err(UnknownTarget(name.clone()));
        }
        let mut decoder = self.freeze();
        for (projection, name) in all_projections(&mut decoder) {
            if options.targets.iter().any(|of| of == target(&name)) {
                let adapted = projection.clone().with_adapter(options.rank, options.alpha);
                *projection = adapted;
            }
        }
        // What scores is new, and PEFT trains it as well.
        if let Some(score) = decoder.score.take() {
            decoder.score = Some(score.unfreeze());
        }
        Ok(decoder)
    }

    /// True if any projection has an adapter.
    pub fn has_adapters(&self) -> bool {
        all_projections(&mut self.clone()).any(|(projection, _)| projection.adapter.is_some())
    }

    /// Merges adapters into the weights they stand beside.
    pub fn merged(mut self) -> Self {
        for (projection, _) in all_projections(&mut self) {
            *projection = projection.clone().merged();
        }
        self
    }

    /// Stores the layers' projections in few bits, as `scheme` says: they are frozen, and numbers
    /// again while they are multiplied (QLoRA, Dettmers et al. 2023).
    pub fn quantized(mut self, scheme: &QuantScheme) -> Self {
        for (projection, _) in all_projections(&mut self) {
            let weight = projection.weight.val();
            let range = compute_range(scheme, &weight, &Calibration::MinMax);
            let weight = weight.quantize(scheme, compute_q_params(scheme, range));
            projection.weight = Param::from_tensor(weight).set_require_grad(false);
        }
        self
    }
}
