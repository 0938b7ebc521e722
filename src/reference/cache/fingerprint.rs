use std::fmt;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Bool, Int, Tensor, TensorData, TensorReadError};

use super::error::CacheError;

/// The identity of a reference: a hash of every parameter's path, shape, number type and bits.
///
/// The same weights give the same fingerprint in every process, on every device, under whatever
/// parameter ids. It does not see the code: settings that change what the same weights compute
/// (a rope base, a mask) and the tokenization belong into [`with`](Self::with).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a model; reads every parameter once.
    ///
    /// # Errors
    ///
    /// The device fails.
    pub fn of<M: Module>(model: &M) -> Result<Self, CacheError> {
        let mut visitor = Hash {
            path: Vec::new(),
            hasher: blake3::Hasher::new(),
            error: None,
        };
        model.visit(&mut visitor);
        match visitor.error {
            Some(error) => Err(error.into()),
            None => Ok(Self(*visitor.hasher.finalize().as_bytes())),
        }
    }

    /// This fingerprint and something else that log-probabilities depend on, such as the
    /// tokenizer's file or the chat template.
    pub fn with(self, name: &str, value: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        hash_field(&mut hasher, name.as_bytes());
        hash_field(&mut hasher, value);
        Self(*hasher.finalize().as_bytes())
    }
}

/// The hash in hexadecimal.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

/// With its length before it, so that neighbours cannot run into each other.
fn hash_field(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

struct Hash {
    path: Vec<String>,
    hasher: blake3::Hasher,
    error: Option<TensorReadError>,
}

impl Hash {
    fn parameter(&mut self, data: Result<TensorData, impl Into<TensorReadError>>) {
        let data = match data {
            Ok(data) => data,
            Err(error) => {
                self.error.get_or_insert(error.into());
                return;
            }
        };
        hash_field(&mut self.hasher, self.path.join(".").as_bytes());
        hash_field(&mut self.hasher, format!("{:?}", data.dtype()).as_bytes());
        hash_field(
            &mut self.hasher,
            format!("{:?}", data.shape().as_slice()).as_bytes(),
        );
        hash_field(&mut self.hasher, data.as_bytes());
    }
}

impl ModuleVisitor for Hash {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.parameter(param.val().try_into_data());
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.parameter(param.val().try_into_data());
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.parameter(param.val().try_into_data());
    }
}
