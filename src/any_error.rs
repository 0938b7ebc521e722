use burn::tensor::TensorReadError;
use thiserror::Error;

#[cfg(feature = "data")]
use crate::data::DataError;
use crate::error::{InvalidHyperparameter, InvalidInput};
#[cfg(feature = "cache")]
use crate::reference::cache::CacheError;
use crate::training::reducer::ReduceError;

/// Any error of this crate: `?` turns each of them into it.
///
/// What can fail returns a `Result`, a readback from a device included. A panic stands in three
/// places, and the documentation names each one:
///
/// - a config's `init`, Burn's idiom, for values that stand in the program; `try_init` is for the
///   others;
/// - a method of a trait whose signature has no room for an error, such as `Objective::forward` and
///   `Batcher::batch`;
/// - an index in brackets, `object["name"]`.
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
    /// A sum over workers that do not come together.
    #[error(transparent)]
    Reduce(#[from] ReduceError),
    /// A device that fails to execute what was queued.
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

/// The error of a Burn dataset, which may hold one of ours.
#[cfg(feature = "data")]
impl From<burn::data::dataset::DatasetError> for Error {
    fn from(error: burn::data::dataset::DatasetError) -> Self {
        DataError::from(error).into()
    }
}
