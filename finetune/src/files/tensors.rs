//! Tensors of safetensors files as numbers in f32.

use std::fs;
use std::path::Path;

use burn::tensor::{Tensor, TensorReadError, bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::error::{WeightError, file, format};

/// A tensor in f32 as a file has it: name, shape, bytes.
pub(crate) type Bytes = (String, Vec<usize>, Vec<u8>);

/// Writes tensors in f32, to the disk.
pub(crate) fn write_tensors(tensors: &[Bytes], path: &Path) -> Result<(), WeightError> {
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        (
            name.as_str(),
            view.expect("as many bytes as the shape says"),
        )
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    // safetensors writes a scratch file that only its owner may read, and renames it.
    let usual = fs::File::create(path).and_then(|made| made.metadata());
    let usual = usual.map_err(file(path))?.permissions();
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(format(path))?;
    fs::set_permissions(path, usual).map_err(file(path))?;
    let written = fs::File::open(path).map_err(file(path))?;
    written.sync_all().map_err(file(path))
}

/// A tensor as a file has it.
pub(crate) fn bytes<const D: usize>(name: &str, tensor: Tensor<D>) -> Result<Bytes, WeightError> {
    let shape = tensor.dims().to_vec();
    let numbers = tensor.try_into_data().map_err(TensorReadError::from)?;
    let bytes = numbers.iter::<f32>().flat_map(f32::to_le_bytes).collect();
    Ok((name.to_owned(), shape, bytes))
}

/// The numbers of a tensor as f32, which holds f16 and bf16 exactly.
pub(crate) fn floats(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>, WeightError> {
    let halves = |of: fn([u8; 2]) -> f32| bytes.as_chunks().0.iter().map(|b| of(*b)).collect();
    let numbers: Vec<f32> = match dtype {
        Dtype::F32 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect(),
        Dtype::F16 => halves(|b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => halves(|b| bf16::from_le_bytes(b).to_f32()),
        found => {
            let name = name.to_owned();
            return Err(WeightError::Type { name, found });
        }
    };
    Ok(numbers)
}
