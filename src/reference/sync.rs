use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Shape, Tensor};

use super::frozen::{ADAPTER, Frozen};
use crate::error::{InvalidHyperparameter, InvalidInput};
use crate::hyperparameter::share;

/// The schedule by which TR-DPO (Gorbatovski et al., 2404.09656) moves the reference.
///
/// ```text
/// every `interval` steps:   reference ← α·policy + (1 − α)·reference
/// ```
///
/// Reading one from a file checks what [`new`](Self::new) checks.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "Fields")]
pub struct ReferenceSchedule {
    interval: usize,
    alpha: f64,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    interval: usize,
    alpha: f64,
}

impl TryFrom<Fields> for ReferenceSchedule {
    type Error = InvalidHyperparameter;

    fn try_from(fields: Fields) -> Result<Self, Self::Error> {
        Self::new(fields.interval, fields.alpha)
    }
}

impl ReferenceSchedule {
    /// Moves the reference every `interval` ≥ 1 steps, by α ∈ (0, 1]. The paper's soft update takes
    /// α = 0.6 every few steps, its hard update α = 1 every few hundred.
    ///
    /// # Errors
    ///
    /// `interval` is 0 or `alpha` outside (0, 1].
    pub fn new(interval: usize, alpha: f64) -> Result<Self, InvalidHyperparameter> {
        if interval == 0 {
            return Err(InvalidHyperparameter::new("interval", 0.0, "≥ 1"));
        }
        share("alpha", alpha)?;
        Ok(Self { interval, alpha })
    }

    /// The paper's soft update: α = 0.6 every `interval` steps.
    ///
    /// # Errors
    ///
    /// `interval` is 0.
    pub fn soft(interval: usize) -> Result<Self, InvalidHyperparameter> {
        Self::new(interval, 0.6)
    }

    /// The paper's hard update: a copy of the policy every `interval` steps.
    ///
    /// # Errors
    ///
    /// `interval` is 0.
    pub fn hard(interval: usize) -> Result<Self, InvalidHyperparameter> {
        Self::new(interval, 1.0)
    }

    /// The reference after optimiser step `step`, counted from 1; the same one where nothing is
    /// due.
    ///
    /// # Errors
    ///
    /// As [`Frozen::moved_toward`].
    pub fn after_step<M: Module>(
        &self,
        step: usize,
        reference: Frozen<M>,
        policy: &M,
    ) -> Result<Frozen<M>, InvalidInput> {
        if step == 0 || !step.is_multiple_of(self.interval) {
            return Ok(reference);
        }
        reference.moved_toward(policy, self.alpha)
    }
}

impl<M: Module> Frozen<M> {
    /// A reference at α·policy + (1 − α)·this one, parameter by parameter.
    ///
    /// Parameters are paired by their path in the module, since a resumed run has other ids. Cached
    /// log-probabilities of this reference are worthless for the new one.
    ///
    /// Adapters (LoRA) are copied at α = 1. For 0 < α < 1 they cannot be mixed: a mixture of their
    /// factors is not a factorisation of the mixture. Quantised weights stay, since nothing trains
    /// them.
    ///
    /// # Errors
    ///
    /// A parameter is missing on one side or has another shape, or is an adapter while 0 < α < 1;
    /// the error names its path. `alpha` is outside \[0, 1\].
    pub fn moved_toward(&self, policy: &M, alpha: f64) -> Result<Self, InvalidInput> {
        if !(0.0..=1.0).contains(&alpha) {
            return Err(InvalidInput::new("alpha", "in [0, 1]", alpha));
        }
        let mut parameters = Parameters::default();
        policy.valid().visit(&mut parameters);
        let mut mix = Mix {
            alpha,
            path: Vec::new(),
            inside_adapter: false,
            policy: parameters.by_path,
            error: None,
        };
        let model = self.model().clone().map(&mut mix);
        if let Some(error) = mix.error {
            return Err(error);
        }
        if let Some(path) = mix.policy.keys().next() {
            return Err(InvalidInput::new(
                "policy",
                "the structure of the reference",
                format!("another parameter at `{path}`"),
            ));
        }
        Ok(Self::new(&model))
    }
}

/// The shape of each parameter by its path, and its flattened values unless they are quantised.
type ByPath = HashMap<String, (Shape, Option<Tensor<1>>)>;

#[derive(Default)]
struct Parameters {
    path: Vec<String>,
    by_path: ByPath,
}

impl ModuleVisitor for Parameters {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val().without_autodiff();
        let shape = value.shape();
        let flat = value
            .dtype()
            .is_float()
            .then(|| value.reshape([shape.num_elements()]));
        self.by_path.insert(self.path.join("."), (shape, flat));
    }
}

struct Mix {
    alpha: f64,
    path: Vec<String>,
    inside_adapter: bool,
    policy: ByPath,
    error: Option<InvalidInput>,
}

impl ModuleMapper for Mix {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push(name.to_owned());
        self.inside_adapter |= container == ADAPTER;
    }

    fn exit_module(&mut self, _: &str, container: &str) {
        self.path.pop();
        self.inside_adapter &= container != ADAPTER;
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.join(".");
        let shape = param.val().shape();
        let alpha = self.alpha;
        match self.policy.remove(&path) {
            Some((found, _)) if found == shape && self.inside_adapter && alpha.fract() != 0.0 => {
                let expected = "no adapter for 0 < alpha < 1: materialize both models";
                let found = format!("one at `{path}`");
                self.error
                    .get_or_insert(InvalidInput::new("policy", expected, found));
                param
            }
            Some((found, policy)) if found == shape => match policy {
                Some(policy) => param.map(|reference| {
                    let policy = policy.to_device(&reference.device()).reshape(shape);
                    policy.cast(reference.dtype()) * alpha + reference * (1.0 - alpha)
                }),
                None => param,
            },
            other => {
                let found =
                    other.map_or("nothing".to_owned(), |(s, _)| format!("{:?}", s.as_slice()));
                let expected = format!("shape {:?} at `{path}`", shape.as_slice());
                self.error
                    .get_or_insert(InvalidInput::new("policy", expected, found));
                param
            }
        }
    }
}
