//! The choice of the kernel. The table in `mod.rs` says the whole rule.

use super::forward::Save;
#[cfg(feature = "flex")]
use super::head::Head;
use burn::backend::DispatchDevice;
#[cfg(feature = "flex")]
use burn::backend::{Flex, TensorMetadata};
#[cfg(any(feature = "flex", feature = "_cube"))]
use burn::tensor::DType;
use burn::tensor::Device;

/// Whether `device` runs on a backend that the operations were built for.
///
/// A backend may be enabled in the user's `burn` but not in our features. In this case the tape
/// records the single steps of the generic kernel, and therefore keeps the logits in memory.
pub(super) fn has_extension(device: &Device) -> bool {
    fn on(device: &DispatchDevice) -> bool {
        match device {
            #[cfg(feature = "flex")]
            DispatchDevice::Flex(_) => true,
            #[cfg(feature = "ndarray")]
            DispatchDevice::NdArray(_) => true,
            #[cfg(feature = "tch")]
            DispatchDevice::LibTorch(_) => true,
            #[cfg(feature = "_cube")]
            DispatchDevice::Cube(_) => true,
            #[cfg(feature = "remote")]
            DispatchDevice::Remote(_) => true,
            DispatchDevice::Autodiff(device) => on(device),
            #[allow(
                unreachable_patterns,
                reason = "only with a backend that is on in burn and not here"
            )]
            _ => false,
        }
    }
    on(device.as_dispatch())
}

/// Bytes of logits that are kept by default however small the weight is.
const FEW_BYTES: usize = 8 << 20;

/// The data that the backward of a head needs. `tracked` says which of hidden states, weight and
/// bias have a gradient. If `retained_bytes` is `None`, the kept logits may take half as much again
/// as the gradient of the weight, `gradient`. A kernel that frees logits while it writes this
/// gradient, or writes it over them, needs only this half more with them than without. A few logits
/// are kept in any case.
pub(super) fn saved_for_backward(
    tracked: [bool; 3],
    retained_bytes: Option<usize>,
    gradient: usize,
) -> Save {
    match tracked {
        [false, false, false] => Save::Nothing,
        [true, false, false] => Save::Slope,
        [_, trains_weight, _] => {
            let gradient = if trains_weight { gradient } else { 0 };
            Save::Tiles(retained_bytes.unwrap_or((gradient + gradient / 2).max(FEW_BYTES)))
        }
    }
}

/// Whether a backend with kernels of its own takes the generic kernel for this number type.
#[cfg(any(feature = "flex", feature = "_cube"))]
pub(super) fn is_generic(dtype: DType) -> bool {
    dtype == DType::F64
}

/// Multiplications of a product that is worth a kernel of its own on Flex.
#[cfg(feature = "flex")]
const WORTH: usize = 100_000;
/// Words of a vocabulary whose sums Burn's product takes in one chain.
#[cfg(feature = "flex")]
const CHAIN: usize = 1024;

/// Whether a head on Flex takes the generic kernel: f64, and small problems in f32.
#[cfg(feature = "flex")]
pub(super) fn takes_generic(head: &Head<Flex>) -> bool {
    let dtype = head.hidden.dtype();
    let [rows, width] = head.hidden.shape().dims();
    let words = head.weight.shape().num_elements() / width.max(1);
    let products = rows.saturating_mul(width).saturating_mul(words);
    let is_small = products < WORTH && words <= CHAIN && dtype == DType::F32;
    is_generic(dtype) || is_small
}
