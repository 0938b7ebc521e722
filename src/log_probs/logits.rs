use burn::tensor::{Bool, Int, Tensor};

use super::predictions::{Predictions, TokenResults};
use crate::error::InvalidInput;
use crate::kernel;

/// Results from the logits of a padded batch.
pub(super) fn from_logits<R: TokenResults>(
    logits: Tensor<3>,
    tokens: Tensor<2, Int>,
    completion_mask: Tensor<2, Bool>,
) -> Result<R, InvalidInput> {
    check_logits(&logits)?;
    let [batch, time, vocab] = logits.dims();
    let shape = [batch, time, vocab];
    let predictions = Predictions::new(shape, &logits.device(), tokens, completion_mask)?;
    let values = kernel::logits_log_probs(
        logits.reshape([batch * time, vocab]),
        predictions.targets(),
        predictions.counted(),
    );
    Ok(R::new(&predictions, values))
}

/// Checks that something is predicted, from some vocabulary.
pub(super) fn check_logits(logits: &Tensor<3>) -> Result<(), InvalidInput> {
    let [_, time, vocab] = logits.dims();
    if time < 2 || vocab == 0 {
        let found = format!("shape {:?}", logits.dims());
        return Err(InvalidInput::new("logits", "time ≥ 2 and vocab ≥ 1", found));
    }
    Ok(())
}
