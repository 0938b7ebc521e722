use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault};
use burn::module::{LoraAdapter, ModuleMapper, ModuleVisitor, Param, Reparameterization};
use burn::tensor::{Device, Tensor};

use crate::error::InvalidInput;
use crate::log_probs::SequenceLogProbs;
use crate::tokens::{Reference, Sealed, Sequence};

/// A model that nothing trains: the reference π° of a preference objective.
///
/// It is a [`Module`](https://docs.rs/burn/0.22.1/burn/module/trait.Module.html), so a struct that
/// derives `Module` may hold it beside the policy. But it is an empty one: no optimiser, checkpoint,
/// parameter count, `unfreeze` or `train` ever sees its parameters. A plain second copy of the
/// policy is a trap: clones keep their parameter ids, so an optimiser can feed the policy's
/// gradients to it.
///
/// The weights are shared with the policy until its first optimiser step writes new ones. A
/// checkpoint does not hold the reference: on resume, build it again from the weights that
/// training started from.
///
/// `to_device` and `fork` keep one copy per device, so a training loop that forks its model to
/// every device at each step copies the reference once.
///
/// # LoRA
///
/// The reference is the model that preference training *starts from*. Which one that is decides
/// between two constructors:
///
/// - **The adapters are new**: it starts from the base. Build the reference from the base model
///   *before* `apply_lora`: it shares the frozen base weights, which never change, and costs nothing
///   for the whole run. Of a policy that is adapted already, such as one that was loaded,
///   [`without_adapters`](Self::without_adapters) is the same. With QLoRA the base is the quantised
///   one, and only the latter sees it.
/// - **The adapters come from SFT**, and preference training goes on with them: it starts from base
///   *and* adapters. Take [`Frozen::new`](Self::new) of the policy before the first step. Without
///   its adapters the reference would be the base, which never saw the SFT data: the first DPO loss
///   is then not ln 2, and the policy is pulled back behind its start.
///
/// ```
/// use burn::module::Module;
/// use burn::nn::{Linear, LinearConfig};
/// use burn::tensor::Device;
/// use burn_preference::Frozen;
///
/// #[derive(Module, Debug)]
/// struct Preference {
///     policy: Linear,
///     reference: Frozen<Linear>,
/// }
///
/// let policy = LinearConfig::new(4, 8).init(&Device::default());
/// let reference = Frozen::new(&policy);
/// let model = Preference { policy, reference };
/// assert_eq!(model.num_params(), 4 * 8 + 8); // the policy's alone
/// ```
#[derive(Clone)]
pub struct Frozen<M> {
    model: M,
    /// The copies that `to_device` made so far, shared by all clones.
    copies: Arc<Mutex<Vec<(Device, M)>>>,
}

impl<M: Module> Frozen<M> {
    /// Freezes a snapshot of `model`: no autodiff, dropout off, weights shared until it changes.
    pub fn new(model: &M) -> Self {
        Self {
            model: model.valid(),
            copies: Arc::default(),
        }
    }

    /// Freezes `model` with its LoRA adapters off: exactly its base weights, which it shares. Also
    /// tells how many adapters that were, one per adapted weight.
    ///
    /// For a policy whose adapters are new. One that starts from an SFT adapter has
    /// [`Frozen::new`](Self::new) of itself as its reference: this one would compare it with the
    /// base.
    ///
    /// The adapters stay in their places with B = 0, so that a weight costs a product of rank
    /// `r` more than in a model that never had them.
    ///
    /// # Errors
    ///
    /// `model` has no LoRA adapter: it is its own base, or its adapters were merged into its
    /// weights, and the base is gone.
    pub fn without_adapters(model: &M) -> Result<(Self, usize), InvalidInput> {
        let mut off = AdaptersOff::default();
        let model = model.valid().map(&mut off);
        if off.count == 0 {
            return Err(InvalidInput::new("model", "LoRA adapters", "none"));
        }
        let copies = Arc::default();
        Ok((Self { model, copies }, off.count))
    }

    /// The frozen model. What it computes from plain tensors carries no autodiff. Its
    /// log-probabilities are [`TokenBatch::reference`](crate::tokens::TokenBatch::reference).
    pub fn model(&self) -> &M {
        &self.model
    }

    fn copies(&self) -> MutexGuard<'_, Vec<(Device, M)>> {
        // A panic while copying leaves the list as it was.
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on(mut self, device: &Device) -> Self {
        let here = self.model.devices();
        if here.iter().all(|d| d == device) {
            return self;
        }
        let known = self
            .copies()
            .iter()
            .find_map(|(d, model)| (d == device).then(|| model.clone()));
        let moved = known.unwrap_or_else(|| {
            let moved = self.model.clone().to_device(device);
            let mut copies = self.copies();
            copies.push((device.clone(), moved.clone()));
            // Coming back costs nothing either.
            if let [home] = here.as_slice()
                && copies.iter().all(|(d, _)| d != home)
            {
                copies.push((home.clone(), self.model.clone()));
            }
            moved
        });
        self.model = moved;
        self
    }
}

impl<M: Module> Sealed for Frozen<M> {}

impl<M: Module> Reference<M> for Frozen<M> {
    type Error = InvalidInput;

    fn answer(
        &self,
        _: &[Sequence],
        _: &Device,
        compute: impl FnOnce(&M) -> Result<SequenceLogProbs, InvalidInput>,
    ) -> Result<SequenceLogProbs, InvalidInput> {
        compute(&self.model)
    }
}

/// The name of the container of an adapter's factors in Burn's traversals.
pub(super) const ADAPTER: &str = "Reparameterization";

/// Zeros B of every LoRA adapter: A·B = 0.
#[derive(Default)]
struct AdaptersOff {
    /// The name of each module that was entered, and whether it is an adapter.
    path: Vec<(String, bool)>,
    /// The number of adapters so far.
    count: usize,
}

impl ModuleMapper for AdaptersOff {
    fn enter_module(&mut self, name: &str, container: &str) {
        let adapter = container == ADAPTER && name == LoraAdapter::NAME;
        self.path.push((name.to_owned(), adapter));
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.path.as_slice() {
            [.., (_, true), (name, _)] if name == "b" => {
                self.count += 1;
                param.map(|b| b.zeros_like())
            }
            _ => param,
        }
    }
}

/// An empty module: it has devices, but nothing that could be trained, saved or counted.
impl<M: Module> Module for Frozen<M> {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.model.collect_devices(devices)
    }

    fn fork(self, device: &Device) -> Self {
        self.on(device)
    }

    fn to_device(self, device: &Device) -> Self {
        self.on(device)
    }

    fn train(self) -> Self {
        self
    }

    fn valid(&self) -> Self {
        self.clone()
    }

    fn materialize(self) -> Self {
        self
    }

    fn visit<V: ModuleVisitor>(&self, _visitor: &mut V) {}

    fn map<P: ModuleMapper>(self, _mapper: &mut P) -> Self {
        self
    }
}

impl<M: fmt::Debug> fmt::Debug for Frozen<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Frozen").field(&self.model).finish()
    }
}

impl<M: ModuleDisplay> ModuleDisplayDefault for Frozen<M> {
    fn content(&self, content: Content) -> Option<Content> {
        content.add("model", &self.model).optional()
    }
}

impl<M: ModuleDisplay> ModuleDisplay for Frozen<M> {}
