//! The choice of the kernel. The table in `mod.rs` says the whole rule.

use burn::backend::DispatchDevice;
#[cfg(feature = "flex")]
use burn::backend::{Flex, TensorMetadata};
#[cfg(any(feature = "flex", feature = "_cube"))]
use burn::tensor::DType;
use burn::tensor::Device;
#[cfg(feature = "flex")]
use pulp::Arch;

#[cfg(feature = "flex")]
use super::flex::lanes::panel::{LANES, Panels};
use super::forward::Save;
#[cfg(feature = "flex")]
use super::head::Head;

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

/// The data that the backward of a head needs. `tracked` says which of hidden states, weight and
/// bias have a gradient.
pub(super) fn saved_for_backward(tracked: [bool; 3], retained_bytes: usize) -> Save {
    match tracked {
        [false, false, false] => Save::Nothing,
        [true, false, false] => Save::Slope,
        _ => Save::Tiles(retained_bytes),
    }
}

/// Whether a backend with kernels of its own takes the generic kernel for this number type.
#[cfg(any(feature = "flex", feature = "_cube"))]
pub(super) fn is_generic(dtype: DType) -> bool {
    dtype == DType::F64
}

/// Kernel of a head on Flex.
#[cfg(feature = "flex")]
pub(super) enum FlexKernel {
    Generic,
    Lanes(Panels),
    Tiles,
}

/// Multiplications of a product that is worth the packing of `lanes`.
#[cfg(feature = "flex")]
const WORTH: usize = 200_000_000;

/// Chooses the kernel of a head on Flex.
#[cfg(feature = "flex")]
pub(super) fn on_flex(head: &Head<Flex>) -> FlexKernel {
    if is_generic(head.hidden.dtype()) {
        return FlexKernel::Generic;
    }
    let [rows, width] = head.hidden.shape().dims();
    let [words, ..] = head.weight.shape().dims::<2>();
    if rows < LANES || rows.saturating_mul(width).saturating_mul(words) < WORTH {
        return FlexKernel::Tiles;
    }
    panels(head).map_or(FlexKernel::Tiles, FlexKernel::Lanes)
}

/// The panels of `lanes`, if that kernel supports the operands and the machine.
#[cfg(feature = "flex")]
pub(super) fn panels(head: &Head<Flex>) -> Option<Panels> {
    let fits = head.form.words_first
        && head.hidden.dtype() == DType::F32
        && head.weight.dtype() == DType::F32
        && head.weight.is_contiguous();
    if fits { Panels::new(Arch::new()) } else { None }
}
