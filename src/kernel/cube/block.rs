//! A block of logits, and the launches of the two kernels over it.

use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::comparison::{FORWARD, MIXED, REVERSE, compare_rows, turn_compared};
use super::rows::{TURNS, reduce_rows, turn_rows};
use super::tensors::{address_type, empty, part, vector_size};
use crate::kernel::discrepancy::Discrepancy;
use crate::kernel::head::Shaping;

/// Units in one cube of the gradient kernel.
const UNITS: u32 = 256;

/// Unfinished logits of some rows and words. The kernels add `bias` to `x` and shape the sum.
pub(super) struct Block {
    pub x: CubeTensor,
    bias: Option<CubeTensor>,
    shaping: Shaping,
}

impl Block {
    pub(super) fn new(x: CubeTensor, bias: Option<CubeTensor>, shaping: Shaping) -> Self {
        Self { x, bias, shaping }
    }

    /// Whether x is scaled, and whether it is capped.
    fn kind(&self) -> [bool; 2] {
        let capped = self.shaping.softcap.is_some();
        [!capped && !self.shaping.is_none(), capped]
    }

    /// `[inside, outside, factor, bend]`. The logits are `outside·tanh(inside·x)` with a softcap
    /// and `inside·x` without one. The gradient needs factor and bend.
    fn factors(&self) -> [f32; 4] {
        let Shaping {
            scale,
            softcap,
            temperature,
        } = self.shaping;
        let (inside, outside) = match softcap {
            Some(cap) => (scale / cap, cap / temperature),
            None => (self.shaping.factor(), 1.0),
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "f32 is what a kernel takes"
        )]
        let narrow = |x: f64| x as f32;
        [inside, outside, self.shaping.factor(), self.shaping.bend()].map(narrow)
    }

    /// The vector width in which the logits may be read. A row of logits may be padded to whole
    /// vectors, but a bias is not padded. So the length of the bias must be a multiple of the
    /// width; otherwise the width is 1.
    fn width(&self, others: &[&CubeTensor]) -> usize {
        let width = vector_size(&[&[&self.x], others].concat());
        match &self.bias {
            Some(bias) if bias.meta.shape()[0] % width != 0 => 1,
            _ => width,
        }
    }

    /// Reads the logits once. Writes one row of `out` for each row of logits, starting at
    /// `first_row`.
    pub(super) fn reduce(
        &self,
        targets: &CubeTensor,
        out: &CubeTensor,
        first_row: usize,
        statistics: bool,
    ) {
        let [rows, vocab] = self.x.meta.shape().dims();
        let of_bias = self.bias.as_ref().map_or(out.dtype, |bias| bias.dtype);
        let dtypes = [self.x.dtype, of_bias, targets.dtype];
        let ([inside, outside, ..], [scaled, capped]) = (self.factors(), self.kind());
        let across = rows.min(32_768);
        let width = self.width(&[]);
        let units = units(&self.x, vocab.div_ceil(width));
        reduce_rows::launch(
            &self.x.client,
            CubeCount::new_2d(count(across), count(rows.div_ceil(across))),
            CubeDim::new_1d(units),
            address_type(&[&self.x]),
            width,
            self.x.clone().into_tensor_arg(),
            ComptimeOptionArgs::from(self.bias.clone().map(CubeTensor::into_tensor_arg)),
            targets.clone().into_tensor_arg(),
            out.clone().into_tensor_arg(),
            inside,
            outside,
            count(first_row),
            scaled,
            capped,
            units,
            vocab % width == 0,
            statistics,
            dtypes.map(dtype_to_storage_type),
        );
    }

    /// The gradient of x in `dtype`. The gradient overwrites x if x has this type and no other
    /// tensor holds the buffer of x. `normalizer` is `[rows, 2 or more]`; only the first two
    /// columns are read.
    pub(super) fn turn(
        self,
        targets: &CubeTensor,
        normalizer: &CubeTensor,
        grad: &CubeTensor,
        [first_row, first_word]: [usize; 2],
        dtype: DType,
    ) -> CubeTensor {
        let [rows, vocab] = self.x.meta.shape().dims();
        let x = &self.x;
        let in_place = x.dtype == dtype && x.can_mut() && x.is_nonoverlapping();
        let output = if in_place {
            x.clone()
        } else {
            empty(x, [rows, vocab], dtype)
        };
        let width = self.width(&[&output]);
        let of_bias = self.bias.as_ref().map_or(grad.dtype, |bias| bias.dtype);
        let dtypes = [x.dtype, of_bias, dtype, targets.dtype];
        let ([inside, outside, factor, bend], [scaled, capped]) = (self.factors(), self.kind());
        let argument = if in_place {
            output.as_tensor_alias(0)
        } else {
            output.clone().into_tensor_arg()
        };
        let stretches = vocab.div_ceil(width).div_ceil(UNITS as usize * TURNS);
        let down = rows.min(32_768);
        turn_rows::launch(
            &x.client,
            CubeCount::new_3d(count(stretches), count(down), count(rows.div_ceil(down))),
            CubeDim::new_1d(UNITS),
            address_type(&[x, &output]),
            width,
            x.clone().into_tensor_arg(),
            ComptimeOptionArgs::from(self.bias.clone().map(CubeTensor::into_tensor_arg)),
            targets.clone().into_tensor_arg(),
            normalizer.clone().into_tensor_arg(),
            grad.clone().into_tensor_arg(),
            argument,
            inside,
            outside,
            factor,
            bend,
            count(first_row),
            count(first_word),
            scaled,
            capped,
            UNITS,
            TURNS,
            dtypes.map(dtype_to_storage_type),
        );
        output
    }
}

/// Blocks of the same rows and words under two models, and the divergence to compare them by.
pub(super) struct Comparison {
    pub kind: Discrepancy,
    pub policy: Block,
    pub reference: Block,
}

impl Comparison {
    /// The number of the kind, and β.
    fn kind(&self) -> (u32, f32) {
        match self.kind {
            Discrepancy::ForwardKl => (FORWARD, 0.0),
            Discrepancy::ReverseKl => (REVERSE, 0.0),
            #[expect(
                clippy::cast_possible_truncation,
                reason = "f32 is what a kernel takes"
            )]
            Discrepancy::JensenShannon(beta) => (MIXED, beta as f32),
        }
    }

    fn width(&self, others: &[&CubeTensor]) -> usize {
        let widths = [&self.policy, &self.reference].map(|block| block.width(others));
        widths[0].min(widths[1])
    }

    /// Number types of both biases.
    fn bias_types(&self) -> [DType; 2] {
        let of = |block: &Block| block.bias.as_ref().map_or(DType::F32, |bias| bias.dtype);
        [of(&self.policy), of(&self.reference)]
    }

    /// Compares the rows, and returns the divergence `[rows, 1]` and what the backward needs,
    /// `[rows, 5]`. Rows with a negative target are not read. Other targets may be any.
    pub(super) fn reduce(&self, targets: &CubeTensor) -> [CubeTensor; 2] {
        let (x, y) = (&self.policy.x, &self.reference.x);
        let [rows, vocab] = x.meta.shape().dims();
        let normalizers = [&self.policy, &self.reference].map(|block| {
            let reduced = empty(x, [rows, 3], DType::F32);
            block.reduce(targets, &reduced, 0, false);
            part(&reduced, 1, 1, 2)
        });
        let normalizers = into_contiguous(CubeBackend::float_cat(normalizers.into(), 1));
        let out = empty(x, [rows, 2], DType::F32);
        let across = rows.min(32_768);
        let width = self.width(&[]);
        let units = units(x, vocab.div_ceil(width));
        let ([our_inside, our_outside, ..], [their_inside, their_outside, ..]) =
            (self.policy.factors(), self.reference.factors());
        let ([our_scaled, our_capped], [their_scaled, their_capped]) =
            (self.policy.kind(), self.reference.kind());
        let (kind, beta) = self.kind();
        let [of_ours, of_theirs] = self.bias_types();
        let [our_bias, their_bias] =
            [&self.policy, &self.reference].map(|block| block.bias.clone());
        compare_rows::launch(
            &x.client,
            CubeCount::new_2d(count(across), count(rows.div_ceil(across))),
            CubeDim::new_1d(units),
            address_type(&[x, y]),
            width,
            x.clone().into_tensor_arg(),
            ComptimeOptionArgs::from(our_bias.map(CubeTensor::into_tensor_arg)),
            y.clone().into_tensor_arg(),
            ComptimeOptionArgs::from(their_bias.map(CubeTensor::into_tensor_arg)),
            targets.clone().into_tensor_arg(),
            normalizers.clone().into_tensor_arg(),
            out.clone().into_tensor_arg(),
            beta,
            our_inside,
            our_outside,
            their_inside,
            their_outside,
            kind,
            our_scaled,
            our_capped,
            their_scaled,
            their_capped,
            units,
            vocab % width == 0,
            [x.dtype, y.dtype, of_ours, of_theirs, targets.dtype].map(dtype_to_storage_type),
        );
        let kept = vec![normalizers, part(&out, 1, 1, 1)];
        let kept = into_contiguous(CubeBackend::float_cat(kept, 1));
        [part(&out, 1, 0, 1), kept]
    }

    /// The gradient of the policy's x in `dtype`, written as by [`Block::turn`]. `kept` is that of
    /// [`Comparison`](crate::kernel::discrepancy::Comparison), from row `first_row` on.
    pub(super) fn turn(
        self,
        targets: &CubeTensor,
        kept: &CubeTensor,
        grad: &CubeTensor,
        first_row: usize,
        dtype: DType,
    ) -> CubeTensor {
        let (x, y) = (&self.policy.x, &self.reference.x);
        let [rows, vocab] = x.meta.shape().dims();
        let in_place = x.dtype == dtype && x.can_mut() && x.is_nonoverlapping();
        let output = if in_place {
            x.clone()
        } else {
            empty(x, [rows, vocab], dtype)
        };
        let width = self.width(&[&output]);
        let argument = if in_place {
            output.as_tensor_alias(0)
        } else {
            output.clone().into_tensor_arg()
        };
        let stretches = vocab.div_ceil(width).div_ceil(UNITS as usize * TURNS);
        let down = rows.min(32_768);
        let [our_inside, our_outside, factor, bend] = self.policy.factors();
        let [their_inside, their_outside, ..] = self.reference.factors();
        let ([our_scaled, our_capped], [their_scaled, their_capped]) =
            (self.policy.kind(), self.reference.kind());
        let (kind, beta) = self.kind();
        let [of_ours, of_theirs] = self.bias_types();
        let [our_bias, their_bias] =
            [&self.policy, &self.reference].map(|block| block.bias.clone());
        turn_compared::launch(
            &x.client,
            CubeCount::new_3d(count(stretches), count(down), count(rows.div_ceil(down))),
            CubeDim::new_1d(UNITS),
            address_type(&[x, y, &output]),
            width,
            x.clone().into_tensor_arg(),
            ComptimeOptionArgs::from(our_bias.map(CubeTensor::into_tensor_arg)),
            y.clone().into_tensor_arg(),
            ComptimeOptionArgs::from(their_bias.map(CubeTensor::into_tensor_arg)),
            targets.clone().into_tensor_arg(),
            kept.clone().into_tensor_arg(),
            grad.clone().into_tensor_arg(),
            argument,
            beta,
            our_inside,
            our_outside,
            their_inside,
            their_outside,
            factor,
            bend,
            count(first_row),
            kind,
            our_scaled,
            our_capped,
            their_scaled,
            their_capped,
            UNITS,
            TURNS,
            [x.dtype, y.dtype, of_ours, of_theirs, dtype, targets.dtype].map(dtype_to_storage_type),
        );
        output
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).expect("rows and words are fewer than 2³²")
}

/// Number of units that share a row. A long row gets many units, because a block then has few rows.
fn units(x: &CubeTensor, vectors: usize) -> u32 {
    let hardware = &x.client.properties().hardware;
    if hardware.num_cpu_cores.is_some() {
        return 1;
    }
    // Each unit stores six numbers in shared memory.
    let memory = hardware.max_shared_memory_size / (6 * size_of::<f32>());
    let most = (hardware.max_units_per_cube as usize).min(memory).min(1024);
    let most = 1 << most.ilog2();
    count(
        vectors
            .div_ceil(4)
            .next_power_of_two()
            .clamp(32.min(most), most),
    )
}
