use std::borrow::Cow;

use burn::tensor::{Bool, DType, Device, Tensor, TensorData};

use super::positions::CountedPositions;
use super::shift::shift_left;
use crate::error::InvalidInput;

/// Mask of the tokens that count, `[batch, time]`: true for those of completions, false for prompts
/// and padding.
///
/// A head gets only the positions that predict a counted token. How many there are has to be known
/// on the host:
///
/// | you have | call | a pass with a head |
/// |---|---|---|
/// | sequences on the host | [`TokenBatch`](crate::tokens::TokenBatch), which holds one | reads nothing back |
/// | marks on the host | [`from_data`](Self::from_data) | reads nothing back |
/// | a tensor | `from` or `into` | reads the mask back, each time: it waits for the device, and fails in a browser |
///
/// A pass from logits reads nothing back, whatever the mask was made of.
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use burn_preference::log_probs::CompletionMask;
/// use burn_preference::{LmHead, TokenLogProbs};
///
/// let device = Device::default();
/// let head = LmHead::new(Tensor::from_floats([[1.0], [-1.0]], &device));
/// let hidden = Tensor::<3>::zeros([1, 3, 1], &device);
/// let tokens = Tensor::<2, Int>::from_ints([[1, 0, 1]], &device);
/// let mask = CompletionMask::from_data([[false, true, true]], &device)?;
///
/// let log_probs = TokenLogProbs::from_output((hidden, head), tokens, mask)?;
/// let lengths = log_probs.sequence().lengths();
/// assert_eq!(lengths.into_scalar::<f32>(), 2.0);
/// # Ok::<(), burn_preference::InvalidInput>(())
/// ```
#[derive(Debug, Clone)]
pub struct CompletionMask {
    mask: Tensor<2, Bool>,
    /// What the host knows of the mask; none where nobody has looked.
    positions: Option<CountedPositions>,
}

impl CompletionMask {
    /// Takes marks on the host, `[batch, time]`.
    ///
    /// # Errors
    ///
    /// `data` does not hold bools in two dimensions, or more than 2³¹ − 1 of them.
    pub fn from_data(data: impl Into<TensorData>, device: &Device) -> Result<Self, InvalidInput> {
        let data: TensorData = data.into();
        let positions = positions(&data, device)?;
        Ok(Self {
            mask: Tensor::from_data(data, device),
            positions: Some(positions),
        })
    }

    /// The marks as a tensor, `[batch, time]`.
    pub fn tensor(&self) -> Tensor<2, Bool> {
        self.mask.clone()
    }

    /// The same mask on another device.
    pub fn to_device(self, device: &Device) -> Self {
        Self {
            mask: self.mask.to_device(device),
            positions: self.positions.map(|all| all.map(|x| x.to_device(device))),
        }
    }

    /// The same mask without autodiff.
    pub(crate) fn without_autodiff(self) -> Self {
        Self {
            mask: self.mask.without_autodiff(),
            positions: self.positions.map(|all| all.map(Tensor::without_autodiff)),
        }
    }

    /// Checks that the mask is of tokens of this shape, on this device.
    pub(crate) fn check(
        &self,
        name: &'static str,
        dims: [usize; 2],
        device: &Device,
    ) -> Result<(), InvalidInput> {
        InvalidInput::check_shape(name, &dims.into(), &self.mask.shape())?;
        InvalidInput::check_device(name, device, &self.mask.device())
    }

    /// The positions that predict a counted token. Reads the mask back if the host has not seen it.
    pub(super) fn positions(&self) -> Result<Cow<'_, CountedPositions>, InvalidInput> {
        if let Some(positions) = &self.positions {
            return Ok(Cow::Borrowed(positions));
        }
        let data = InvalidInput::read("completion_mask", &self.mask)?;
        positions(&data, &self.mask.device()).map(Cow::Owned)
    }

    /// Mask of the predictions that count, `[batch, time − 1]`.
    pub(super) fn predictions(&self) -> Tensor<2, Bool> {
        let [_, time] = self.mask.dims();
        self.tensor().narrow(1, 1, time - 1)
    }

    /// Mask of the positions that predict a counted token, `[batch, time]`: false in the last
    /// column.
    pub(super) fn predicting(&self) -> Tensor<2, Bool> {
        shift_left(self.tensor())
    }
}

/// A mask whose marks the host does not know: a pass with a head reads it back.
impl From<Tensor<2, Bool>> for CompletionMask {
    fn from(mask: Tensor<2, Bool>) -> Self {
        Self {
            mask,
            positions: None,
        }
    }
}

fn positions(data: &TensorData, device: &Device) -> Result<CountedPositions, InvalidInput> {
    let &[batch, time] = data.shape().as_slice() else {
        let found = format!("shape {:?}", data.shape().as_slice());
        return Err(InvalidInput::new(
            "completion_mask",
            "two dimensions",
            found,
        ));
    };
    if !matches!(data.dtype(), DType::Bool(_)) {
        let found = format!("{:?}", data.dtype());
        return Err(InvalidInput::new("completion_mask", "bools", found));
    }
    let counted: Vec<bool> = data.iter().collect();
    CountedPositions::new(&counted, [batch, time], device)
}
