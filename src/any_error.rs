use burn::tensor::TensorReadError;
use thiserror::Error;

#[cfg(feature = "data")]
use crate::data::DataError;
use crate::error::{InvalidHyperparameter, InvalidInput};
#[cfg(feature = "cache")]
use crate::reference::cache::CacheError;
use crate::training::reducer::ReduceError;

/// Whatever a training step may fail with: `?` turns every error of this crate into it.
///
/// What can fail returns a `Result`, everywhere in this crate. The one exception is a config's
/// `init`, Burn's idiom, for values that stand in the program; `try_init` is for the others. Where
/// a trait of Burn has no room for an error (`Batcher::batch`, `Objective::forward`), the
/// documentation names the panic.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_preference::training::reducer::Reducer;
/// use burn_preference::{DpoLossConfig, Error, Objective, ReferencedPair};
///
/// fn loss(batch: ReferencedPair, pairs: usize, reducer: &dyn Reducer) -> Result<Tensor<1>, Error> {
///     let dpo = DpoLossConfig::new().with_beta(0.1).try_init()?; // InvalidHyperparameter
///     let output = dpo.forward(batch);
///     let total = reducer.total(pairs, &output.losses().device())?; // ReduceError
///     Ok(output.normalized_by(total)?)
/// }
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A hyperparameter outside its range.
    #[error(transparent)]
    Hyperparameter(#[from] InvalidHyperparameter),
    /// A tensor that does not fit.
    #[error(transparent)]
    Input(#[from] InvalidInput),
    /// Workers that do not come together.
    #[error(transparent)]
    Reduce(#[from] ReduceError),
    /// A device that fails to execute what is queued.
    #[error(transparent)]
    Read(#[from] TensorReadError),
    /// A row that cannot be read.
    #[cfg(feature = "data")]
    #[error(transparent)]
    Data(#[from] DataError),
    /// A cache that cannot be read or written.
    #[cfg(feature = "cache")]
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// What a Burn dataset says of a row.
#[cfg(feature = "data")]
impl From<burn::data::dataset::DatasetError> for Error {
    fn from(error: burn::data::dataset::DatasetError) -> Self {
        DataError::from(error).into()
    }
}
