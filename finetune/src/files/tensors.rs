//! Tensors of safetensors files, and numbers of their types.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use burn::tensor::{FloatDType, TensorData, bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Deserialize;
use serde_json::Value;

use super::error::{WeightError, file, format, json};

/// A tensor as a file has it.
pub(crate) struct Stored {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    /// The numbers of a tensor in another type, each rounded to the nearest.
    pub(crate) fn new(
        name: String,
        dtype: FloatDType,
        data: &TensorData,
    ) -> Result<Self, WeightError> {
        let numbers = || data.iter::<f32>();
        let halves = |half: fn(f32) -> (bool, [u8; 2])| {
            let is_lost = |x: f32| x.is_finite() && !half(x).0;
            match numbers().enumerate().find(|(_, x)| is_lost(*x)) {
                None => Ok(numbers().flat_map(|x| half(x).1).collect()),
                Some((place, value)) => Err(WeightError::TooLarge {
                    name: name.clone(),
                    place,
                    value,
                    dtype,
                }),
            }
        };
        let (of_file, bytes) = match dtype {
            FloatDType::F16 => {
                let half = |x| (f16::from_f32(x).is_finite(), f16::from_f32(x).to_le_bytes());
                (Dtype::F16, halves(half)?)
            }
            FloatDType::BF16 => {
                let half = |x| {
                    (
                        bf16::from_f32(x).is_finite(),
                        bf16::from_f32(x).to_le_bytes(),
                    )
                };
                (Dtype::BF16, halves(half)?)
            }
            _ => (Dtype::F32, numbers().flat_map(f32::to_le_bytes).collect()),
        };
        Ok(Self {
            name,
            dtype: of_file,
            shape: data.shape().to_vec(),
            bytes,
        })
    }
}

/// Writes a file of tensors.
pub(crate) fn write_tensors(tensors: &[Stored], path: &Path) -> Result<(), WeightError> {
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
        let view = view.expect("as many bytes as the shape says");
        (tensor.name.as_str(), view)
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    // safetensors writes a scratch file that only its owner may read, and renames it.
    let usual = fs::File::create(path).and_then(|made| made.metadata());
    let usual = usual.map_err(file(path))?.permissions();
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(format(path))?;
    fs::set_permissions(path, usual).map_err(file(path))
}

/// The number type of each tensor of a file, as its header says; of those that are read.
pub(crate) fn types(path: &Path) -> Result<BTreeMap<String, FloatDType>, WeightError> {
    #[derive(Deserialize)]
    struct Entry {
        dtype: String,
    }

    let header = fs::File::open(path).and_then(|mut file| {
        let mut size = [0; 8];
        file.read_exact(&mut size)?;
        let mut header = Vec::new();
        let read = file.take(u64::from_le_bytes(size)).read_to_end(&mut header);
        read.and(Ok(header))
    });
    let header = header.map_err(file(path))?;
    let entries: BTreeMap<String, Value> = serde_json::from_slice(&header).map_err(json(path))?;
    let typed = entries.into_iter().filter_map(|(name, entry)| {
        let entry = Entry::deserialize(entry).ok()?;
        let dtype = match entry.dtype.as_str() {
            "F32" => FloatDType::F32,
            "F16" => FloatDType::F16,
            "BF16" => FloatDType::BF16,
            _ => return None,
        };
        Some((name, dtype))
    });
    Ok(typed.collect())
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
