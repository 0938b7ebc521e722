//! What a denoiser has instead of the log-probability of a completion.

use burn::tensor::Tensor;
use burn_preference::{InvalidInput, SequenceLogProbs, TokenLogProbs};

/// Up to a constant, the Gaussian log-density of each example at one timestep:
///
/// ```text
/// ℓ = −½·‖ε − ε̂‖²          a term −½·(ε_i − ε̂_i)² per coordinate
/// ```
///
/// Coordinates take the place of tokens, so that `Normalization::Sum` is the squared norm of the
/// papers, and `Normalization::Mean` the mean over the numbers of a latent that Diffusion-DPO's
/// code has. Images are flattened; a mask that is not all true would leave coordinates out.
///
/// # Shapes
///
/// - `predicted`, `noise`: `[batch, coordinates]`, ε̂ and ε
pub fn log_probs(predicted: Tensor<2>, noise: Tensor<2>) -> Result<SequenceLogProbs, InvalidInput> {
    let densities = (predicted - noise.clone()).square() * -0.5;
    let all = noise.zeros_like().equal_elem(0.0);
    Ok(TokenLogProbs::new(densities, all)?.sequence())
}
