//! A product with a weight, and an adapter beside it.

use burn::module::{Module, Param};
use burn::nn::LinearConfig;
use burn::tensor::module::linear;
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};

/// x·W + b, and scale·(x·A)·B where there is an adapter (LoRA, Hu et al. 2021, Eq. 3).
///
/// Burn's own LoRA adds A·B to the weight, so that a step computes a gradient as large as the
/// weight. Beside the weight it is two small products, the frozen weight needs no gradient, and it
/// may have fewer bits than the adapter.
#[derive(Module, Debug)]
pub struct Projection {
    /// The weight, `[in, out]`.
    pub weight: Param<Tensor<2>>,
    /// The bias, `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// The adapter, which is trained instead of the weight.
    pub adapter: Option<Adapter>,
}

/// The factors of an adapter, in f32 whatever the weight is.
#[derive(Module, Debug)]
pub struct Adapter {
    /// A, `[in, rank]`.
    pub a: Param<Tensor<2>>,
    /// B, `[rank, out]`.
    pub b: Param<Tensor<2>>,
    /// The factor α/rank.
    #[module(skip)]
    pub scale: f64,
}

impl Projection {
    /// Makes a projection with a random weight.
    pub fn new(from: usize, to: usize, bias: bool, device: &Device) -> Self {
        let linear = LinearConfig::new(from, to).with_bias(bias).init(device);
        Self {
            weight: linear.weight,
            bias: linear.bias,
            adapter: None,
        }
    }

    /// Multiplies `[…, in]` to `[…, out]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let bias = self.bias.as_ref().map(Param::val);
        let y = linear(x.clone(), self.dense().cast(x.dtype()), bias);
        match &self.adapter {
            Some(adapter) => y.clone() + adapter.forward(x.cast(FloatDType::F32)).cast(y.dtype()),
            None => y,
        }
    }

    /// The weight, with its adapter merged into it: then in f32, since fewer digits would lose most
    /// of an adapter.
    pub fn weight(&self) -> Tensor<2> {
        let weight = self.dense();
        match &self.adapter {
            Some(adapter) => weight.cast(FloatDType::F32) + adapter.delta(),
            None => weight,
        }
    }

    /// The weight as numbers, whatever it is stored as.
    fn dense(&self) -> Tensor<2> {
        let weight = self.weight.val();
        match weight.dtype() {
            DType::QFloat(_) => weight.dequantize(),
            _ => weight,
        }
    }

    /// Adds a new adapter that changes nothing yet: A is random, B is 0, as PEFT begins.
    pub fn with_adapter(mut self, rank: usize, alpha: f64) -> Self {
        let device = self.weight.val().device();
        let [from, to] = self.weight.val().dims();
        // PEFT's: Kaiming with a = √5, uniform within ±1/√in.
        let bound = (from as f64).sqrt().recip();
        let options = (&device, DType::F32);
        let a = Tensor::random([from, rank], Distribution::Uniform(-bound, bound), options);
        self.adapter = Some(Adapter {
            a: Param::from_tensor(a),
            b: Param::from_tensor(Tensor::zeros([rank, to], options)),
            scale: alpha / rank as f64,
        });
        self
    }

    /// Merges the adapter into the weight, in the weight's own number type.
    pub fn merged(mut self) -> Self {
        let weight = self.weight().detach().cast(self.dense().dtype());
        self.weight = Param::initialized(self.weight.id, weight);
        self.adapter = None;
        self
    }
}

impl Adapter {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let small = linear(x, self.a.val(), None);
        linear(small * self.scale, self.b.val(), None)
    }

    fn delta(&self) -> Tensor<2> {
        self.a.val().matmul(self.b.val()) * self.scale
    }
}
