use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};

use crate::error::InvalidInput;

/// The positions that predict a counted token, which alone reach the head.
///
/// They are known on the host, and so is their number, which the device must be told.
#[derive(Debug, Clone)]
pub struct CountedPositions {
    /// Their places in the output of the model.
    source: Tensor<1, Int>,
    /// Their places among all predictions `[batch, time − 1]`.
    index: Tensor<1, Int>,
    /// Rows and length of the padded sequences, `[batch, time]`.
    dims: [usize; 2],
    none: bool,
}

impl CountedPositions {
    /// The positions that predict the marked ones of the tokens `[batch, time]`, in the output for
    /// the same tokens.
    pub fn new(counted: &[bool], dims: [usize; 2], device: &Device) -> Result<Self, InvalidInput> {
        let [batch, time] = dims;
        let mut places = Vec::new();
        for row in 0..batch {
            // The first token of a row is never predicted.
            for t in (1..time).filter(|t| counted[row * time + t]) {
                let t = t - 1;
                places.push([row * (time - 1) + t, row * time + t]);
            }
        }
        Self::at(&places, dims, device)
    }

    /// The positions at these places: among the predictions of padded sequences `[batch, time]`, and
    /// in the output of the model.
    pub fn at(
        places: &[[usize; 2]],
        dims: [usize; 2],
        device: &Device,
    ) -> Result<Self, InvalidInput> {
        let tensor = |side: usize| {
            let places = places.iter().map(|place| i32::try_from(place[side]));
            // Where nothing counts, one row of zeros keeps the graph: a backward finds its leaves.
            let places: Result<Vec<i32>, _> = match places.len() {
                0 => Ok(vec![0]),
                _ => places.collect(),
            };
            let places = places.map_err(|_| {
                let found = format!("shape {dims:?}");
                InvalidInput::new("completion_mask", "at most 2³¹ − 1 tokens", found)
            })?;
            Ok(Tensor::from_data(
                TensorData::from(places.as_slice()),
                device,
            ))
        };
        Ok(Self {
            index: tensor(0)?,
            source: tensor(1)?,
            dims,
            none: places.is_empty(),
        })
    }

    /// Rows and length of the padded sequences.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// Takes the counted positions of a model's output, `[positions, width]`.
    pub fn take(&self, output: Tensor<2>) -> Tensor<2> {
        let counted = output.select(0, self.source.clone());
        if self.none {
            let everywhere = counted.zeros_like().equal_elem(0.0);
            return counted.mask_fill(everywhere, 0.0);
        }
        counted
    }

    /// Takes the tokens that the counted positions predict, of the padded ones.
    pub fn targets(&self, tokens: Tensor<2, Int>) -> Tensor<1, Int> {
        let [batch, time] = self.dims;
        let predicted = tokens.narrow(1, 1, time - 1).reshape([batch * (time - 1)]);
        predicted.select(0, self.index.clone())
    }

    /// Puts each value back at its place among all predictions, `[batch, time − 1]`; the others are
    /// 0.
    pub fn spread(&self, values: Tensor<1>) -> Tensor<2> {
        let [batch, time] = self.dims;
        let zeros = Tensor::zeros([batch * (time - 1)], (&values.device(), values.dtype()));
        let values = if self.none {
            let everywhere = values.zeros_like().equal_elem(0.0);
            values.mask_fill(everywhere, 0.0)
        } else {
            values
        };
        let all = zeros.select_assign(0, self.index.clone(), values, IndexingUpdateOp::Add);
        all.reshape([batch, time - 1])
    }

    /// The same positions, `f` of each tensor.
    pub fn map(self, f: impl Fn(Tensor<1, Int>) -> Tensor<1, Int>) -> Self {
        Self {
            source: f(self.source),
            index: f(self.index),
            ..self
        }
    }
}
