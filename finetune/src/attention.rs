//! Attention with grouped queries, under a mask or within the segments of packed rows.

use burn::tensor::{Bool, Tensor};
use burn_preference::tokens::Segment;

/// The tokens that each token may look at.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one a forward")]
pub enum Visible<'a> {
    /// True where a token must not look, `[batch or 1, 1, time, total]`.
    Mask(Tensor<4, Bool>),
    /// Prompts and completions of packed rows, one after the other: nothing is computed that a mask
    /// would hide.
    Segments(&'a [Segment]),
}

/// Scale and softcap of attention scores before the softmax.
#[derive(Debug, Clone, Copy)]
pub struct ScoreScale {
    /// The number that products of queries and keys are divided by.
    pub divisor: f64,
    /// c of c·tanh(x/c).
    pub softcap: Option<f64>,
}

/// Attention of queries `[batch, heads, time, head]`; keys and values have a divisor of as many
/// heads.
pub fn attend(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    visible: &Visible<'_>,
    scale: ScoreScale,
) -> Tensor<4> {
    match visible {
        Visible::Mask(mask) => under(query, key, value, mask.clone(), scale),
        Visible::Segments(segments) => within(query, key, value, segments, scale),
    }
}

fn under(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Tensor<4, Bool>,
    ScoreScale { divisor, softcap }: ScoreScale,
) -> Tensor<4> {
    let [batch, heads, time, head_dim] = query.dims();
    let [_, kv_heads, total, _] = key.dims();
    // Every group of query heads shares one key and value head: its rows stand below each other.
    let grouped = [batch, kv_heads, heads / kv_heads * time];
    let together = |x: Tensor<4>, width| x.reshape([grouped[0], grouped[1], grouped[2], width]);
    let query = together(query * divisor.recip(), head_dim);
    let scores = query.matmul(key.swap_dims(2, 3));
    let scores = match softcap {
        Some(cap) => (scores * cap.recip()).tanh() * cap,
        None => scores,
    };
    let scores = scores.reshape([batch, heads, time, total]);
    let scores = scores.mask_fill(mask, f32::NEG_INFINITY);
    // The softmax, divided by its sum behind the product, where there is less to divide. Burn's own
    // is one kernel without autodiff and its parts with it, and rounds otherwise: a policy and a
    // reference of the same weights would not be equal.
    let largest = scores.clone().detach().max_dim(3);
    let powers = (scores - largest).exp();
    let sum = powers.clone().sum_dim(3);
    let mixed = together(powers, total).matmul(value);
    mixed.reshape([batch, heads, time, head_dim]) / sum
}

/// One segment after the other.
fn within(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    segments: &[Segment],
    scale: ScoreScale,
) -> Tensor<4> {
    let [batch, heads, time, head_dim] = query.dims();
    let device = query.device();
    let mut rows: Vec<Vec<Tensor<4>>> = vec![Vec::new(); batch];
    let mut prompt = None;
    for segment in segments {
        let (row, tokens) = (segment.row, segment.tokens.clone());
        let part = |x: &Tensor<4>| {
            x.clone()
                .slice([row..row + 1, 0..x.dims()[1], tokens.clone()])
        };
        let (mut keys, mut values) = (part(&key), part(&value));
        if segment.sequence.is_none() {
            prompt = Some((keys.clone(), values.clone()));
        } else if let Some((of_prompt, said)) =
            prompt.clone().filter(|_| !segment.prompt.is_empty())
        {
            keys = Tensor::cat(vec![of_prompt, keys], 2);
            values = Tensor::cat(vec![said, values], 2);
        }
        let (before, own) = (segment.prompt.len(), tokens.len());
        let future = Tensor::<2, Bool>::tril_mask([own, before + own], before as i64, &device);
        rows[row].push(under(part(&query), keys, values, future.unsqueeze(), scale));
    }
    let rows = rows.into_iter().map(|mut parts| {
        let used: usize = parts.iter().map(|part| part.dims()[2]).sum();
        if used < time {
            // Nobody sees padding: what stands there does not matter.
            let shape = [1, heads, time - used, head_dim];
            parts.push(Tensor::zeros(shape, (&device, query.dtype())));
        }
        Tensor::cat(parts, 2)
    });
    Tensor::cat(rows.collect(), 0)
}
