use burn::nn::{Embedding, Linear};
use burn::tensor::{Shape, Tensor};

use crate::error::{InvalidHyperparameter, InvalidInput};
use crate::hyperparameter::positive;
use crate::kernel::{self, HeadTensors, Shaping};
use crate::math::upcast;

/// The last layer of a language model, from hidden states to logits: weight and bias.
///
/// A handle to them, as cheap to make in every step as a clone of the tensors.
/// [`TokenLogProbs::from_output`](super::TokenLogProbs::from_output) applies it without ever holding
/// all logits.
///
/// ```text
/// logits = softcap(scale·(W·hidden + b)) / temperature
/// ```
///
/// Look into your model's config: does its head scale or cap its logits? If you do not say so
/// ([`with_logit_scale`](Self::with_logit_scale), [`with_softcap`](Self::with_softcap)), the
/// log-probabilities are those of another model, and no error tells. Both act in f32, whatever the
/// head's number type.
///
/// Which gradients are computed follows from the tensors: a weight without `require_grad` (LoRA,
/// [`Frozen`](crate::Frozen)) costs nothing in the backward.
#[derive(Debug, Clone)]
pub struct LmHead {
    weight: Tensor<2>,
    /// The weight is `[vocab, hidden]`; otherwise `[hidden, vocab]`.
    words_first: bool,
    bias: Option<Tensor<1>>,
    shaping: Shaping,
    /// `None` is the default.
    pub(super) retained_bytes: Option<usize>,
}

impl LmHead {
    /// A head without bias, of a weight `[vocab, hidden]`: one row per word.
    pub fn new(weight: Tensor<2>) -> Self {
        Self {
            weight,
            words_first: true,
            bias: None,
            shaping: Shaping::NONE,
            retained_bytes: None,
        }
    }

    /// A head without bias, of a weight `[hidden, vocab]`: one column per word.
    pub fn transposed(weight: Tensor<2>) -> Self {
        Self {
            words_first: false,
            ..Self::new(weight)
        }
    }

    /// Adds a bias, `[vocab]`.
    pub fn with_bias(mut self, bias: Tensor<1>) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Multiplies the logits: `logit_scale` of Cohere and Olmo, 1/`logits_scaling` of Granite,
    /// the width multiplier of MuP. The default is 1.
    ///
    /// # Errors
    ///
    /// `scale` is not a finite number > 0, in f32.
    pub fn with_logit_scale(mut self, scale: f64) -> Result<Self, InvalidHyperparameter> {
        positive("logit_scale", scale)?;
        self.shaping.scale = scale;
        Ok(self)
    }

    /// Caps the logits softly at ±c, after the scale: Gemma 2's `final_logit_softcapping`, 30. The
    /// default is no cap.
    ///
    /// ```text
    /// logit = c·tanh(x/c)
    /// ```
    ///
    /// # Errors
    ///
    /// `cap` is not a finite number > 0, in f32.
    pub fn with_softcap(mut self, cap: f64) -> Result<Self, InvalidHyperparameter> {
        positive("softcap", cap)?;
        self.shaping.softcap = Some(cap);
        Ok(self)
    }

    /// Divides the logits, after the softcap: log-probabilities of a policy that samples at this
    /// temperature. The default is 1.
    ///
    /// # Errors
    ///
    /// `temperature` is not a finite number > 0, in f32.
    pub fn with_temperature(mut self, temperature: f64) -> Result<Self, InvalidHyperparameter> {
        positive("temperature", temperature)?;
        self.shaping.temperature = temperature;
        Ok(self)
    }

    /// Sets the number of bytes of logits that a trainable head may keep from forward to backward.
    /// The default is one and a half times the size of the weight's gradient, at least 8 MiB; `0` is
    /// the least memory.
    ///
    /// Logits that are not kept are computed again: a fourth product of the size of the three that a
    /// trainable head needs. All of them take 4·rows·vocab bytes (8 in f64), where `rows` counts the
    /// tokens that count. So by default a batch with no more such rows than one and a half times the
    /// hidden size keeps all of them. The numbers are the same whatever is kept.
    ///
    /// On Flex the gradient of a weight `[vocab, hidden]` in f32 overwrites the logits, and the
    /// backward frees them while it writes any other one. So the default takes at most half of this
    /// gradient and some 40 MiB more at the peak than `0`, as long as nothing else needs the memory
    /// between forward and backward: `cargo bench --workspace --bench head_floor` measures it. A
    /// frozen head keeps none and needs none. Kernels for GPUs keep none, and neither does the
    /// divergence of two models ([`TokenDiscrepancy`](super::TokenDiscrepancy)).
    pub fn with_retained_bytes(mut self, bytes: usize) -> Self {
        self.retained_bytes = Some(bytes);
        self
    }

    /// The same head as a constant.
    pub fn without_autodiff(self) -> Self {
        Self {
            weight: self.weight.without_autodiff(),
            bias: self.bias.map(Tensor::without_autodiff),
            ..self
        }
    }

    /// Logits of hidden states: all of them at once, for sampling or a measure of your own. An
    /// objective never needs them: see
    /// [`TokenLogProbs::from_output`](super::TokenLogProbs::from_output).
    ///
    /// # Shapes
    ///
    /// - `hidden`: `[batch, time, hidden]`
    /// - output: `[batch, time, vocab]`
    ///
    /// # Numerics
    ///
    /// The product has the number type of hidden states and head. Bias, scale, softcap and
    /// temperature act in f32 at least, and so are the logits.
    ///
    /// # Errors
    ///
    /// Hidden size, number types or devices do not fit together, or there is no vocabulary.
    pub fn logits(&self, hidden: Tensor<3>) -> Result<Tensor<3>, InvalidInput> {
        self.check_operands(&hidden)?;
        let [batch, time, width] = hidden.dims();
        let [vocab, _] = self.dims();
        if batch * time == 0 {
            // NdArray panics on a product without rows.
            let none = upcast(hidden.sum_dim(2));
            return Ok(none.expand(Shape::new([batch, time, vocab])));
        }
        let hidden = hidden.reshape([batch * time, width]);
        let logits = kernel::head_logits(self.with_hidden(hidden));
        Ok(logits.reshape([batch, time, vocab]))
    }

    /// The head with hidden states `[rows, hidden]`, as kernels take it.
    pub(super) fn with_hidden(&self, hidden: Tensor<2>) -> HeadTensors {
        HeadTensors {
            hidden,
            weight: self.weight.clone(),
            bias: self.bias.clone(),
            words_first: self.words_first,
            shaping: self.shaping,
        }
    }

    /// Vocabulary and hidden size.
    pub(super) fn dims(&self) -> [usize; 2] {
        let [first, second] = self.weight.dims();
        if self.words_first {
            [first, second]
        } else {
            [second, first]
        }
    }

    /// Checks that the head fits hidden states `[batch, time, hidden]`, and that at least one
    /// position predicts a token.
    pub(super) fn check(&self, hidden: &Tensor<3>) -> Result<(), InvalidInput> {
        self.check_operands(hidden)?;
        let [_, time, _] = hidden.dims();
        if time < 2 {
            let found = format!("shape {:?}", hidden.dims());
            return Err(InvalidInput::new("hidden", "time ≥ 2", found));
        }
        Ok(())
    }

    fn check_operands(&self, hidden: &Tensor<3>) -> Result<(), InvalidInput> {
        let [vocab, width] = self.dims();
        let [_, _, expected] = hidden.dims();
        if width != expected || vocab == 0 || width == 0 {
            let found = format!("vocab {vocab}, hidden {width}");
            let expected = format!("vocab ≥ 1, hidden {expected} ≥ 1");
            return Err(InvalidInput::new("head.weight", expected, found));
        }
        InvalidInput::check_device("head.weight", &hidden.device(), &self.weight.device())?;
        InvalidInput::check_dtype("head.weight", hidden.dtype(), self.weight.dtype())?;
        if let Some(bias) = &self.bias {
            InvalidInput::check_shape("head.bias", &[vocab].into(), &bias.shape())?;
            InvalidInput::check_device("head.bias", &hidden.device(), &bias.device())?;
            InvalidInput::check_dtype("head.bias", hidden.dtype(), bias.dtype())?;
        }
        Ok(())
    }
}

impl From<&Linear> for LmHead {
    fn from(linear: &Linear) -> Self {
        let head = Self::transposed(linear.weight.val());
        match &linear.bias {
            Some(bias) => head.with_bias(bias.val()),
            None => head,
        }
    }
}

/// The head of tied embeddings: the embedding that looks the ids up, read a second time.
///
/// Use one field twice, never two fields. A clone of the embedding in a second field, or a `Param`
/// cloned into another layer, is the same parameter only until the first step: Burn's optimiser
/// moves one of the two, and the model that trains is another one.
/// [`FirstBatch::with_parameters_of`](crate::training::first_batch::FirstBatch::with_parameters_of)
/// finds it.
///
/// ```
/// use burn::module::Module;
/// use burn::nn::{Embedding, EmbeddingConfig};
/// use burn::tensor::{Device, Int, Tensor};
/// use burn_preference::LmHead;
///
/// #[derive(Module, Debug)]
/// struct Tied {
///     embedding: Embedding, // and no second field for the head
/// }
///
/// impl Tied {
///     fn hidden(&self, ids: Tensor<2, Int>) -> (Tensor<3>, LmHead) {
///         (self.embedding.forward(ids), LmHead::from(&self.embedding))
///     }
/// }
/// # let model = Tied { embedding: EmbeddingConfig::new(9, 4).init(&Device::default()) };
/// # let (hidden, head) = model.hidden(Tensor::from_ints([[1, 2]], &Device::default()));
/// # assert_eq!(head.logits(hidden)?.dims(), [1, 2, 9]);
/// # Ok::<(), burn_preference::InvalidInput>(())
/// ```
impl From<&Embedding> for LmHead {
    fn from(embedding: &Embedding) -> Self {
        Self::new(embedding.weight.val())
    }
}
