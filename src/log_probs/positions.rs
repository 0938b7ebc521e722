use burn::tensor::{Bool, Device, IndexingUpdateOp, Int, Tensor};

/// The positions that predict a counted token, which alone reach the head.
pub struct CountedPositions {
    /// Their places in the output of the model.
    source: Tensor<1, Int>,
    /// Their places among all predictions.
    index: Tensor<1, Int>,
    all: usize,
    none: bool,
}

impl CountedPositions {
    /// Reads the mask back, once, to know the number of positions.
    pub fn new(counted: Tensor<1, Bool>) -> Self {
        let [all] = counted.dims();
        let device = counted.device();
        let index: Tensor<1, Int> = counted.argwhere().squeeze_dim(1);
        let index = (index.dims() != [0]).then_some(index);
        Self::at(index.map(|index| [index.clone(), index]), all, &device)
    }

    /// The positions at `index` of `all` predictions, and at `source` in the output of the model;
    /// `None` where none counts.
    pub fn at(index_and_source: Option<[Tensor<1, Int>; 2]>, all: usize, device: &Device) -> Self {
        let none = index_and_source.is_none();
        // Where nothing counts, one row of zeros keeps the graph: a backward finds its leaves.
        let [index, source] =
            index_and_source.unwrap_or_else(|| [0, 1].map(|_| Tensor::zeros([1], device)));
        Self {
            source,
            index,
            all,
            none,
        }
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

    /// Takes the targets of the counted positions.
    pub fn targets(&self, targets: Tensor<1, Int>) -> Tensor<1, Int> {
        targets.select(0, self.index.clone())
    }

    /// Puts each value back at its place among all predictions; the others are 0, which
    /// `Predictions` fills.
    pub fn spread<const D: usize>(&self, values: Tensor<D>) -> Tensor<D> {
        let mut shape = values.dims();
        shape[0] = self.all;
        let zeros = Tensor::zeros(shape, (&values.device(), values.dtype()));
        zeros.select_assign(0, self.index.clone(), values, IndexingUpdateOp::Add)
    }
}

/// Values of the counted positions, which [`CountedPositions::spread`] takes.
pub trait Spread {
    fn spread(self, positions: &CountedPositions) -> Self;
}

impl<const D: usize> Spread for Tensor<D> {
    fn spread(self, positions: &CountedPositions) -> Self {
        positions.spread(self)
    }
}

impl<A: Spread, B: Spread> Spread for (A, B) {
    fn spread(self, positions: &CountedPositions) -> Self {
        (self.0.spread(positions), self.1.spread(positions))
    }
}
