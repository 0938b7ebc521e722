use burn::tensor::{Int, Tensor};

use super::mask::CompletionMask;
use super::predictions::{Targets, TokenResults, check_tokens};
use super::shift::{roll_left, widen};
use super::token::TokenLogProbs;
use crate::error::InvalidInput;
use crate::kernel;

/// Results from the logits of a padded batch. Nothing is read back.
pub(super) fn from_logits<R: TokenResults>(
    logits: Tensor<3>,
    tokens: Tensor<2, Int>,
    mask: &CompletionMask,
) -> Result<R, InvalidInput> {
    check_logits(&logits)?;
    let [batch, time, vocab] = logits.dims();
    check_tokens([batch, time], &logits.device(), &tokens, mask)?;
    // Shifting the small tensors left instead of slicing the logits saves a copy of these. The
    // last position predicts nothing.
    let all = [batch * time];
    let targets = Targets::new(roll_left(widen(tokens)).reshape(all), vocab);
    let outputs: R::Outputs = kernel::logits_log_probs(
        logits.reshape([batch * time, vocab]),
        targets.words.clone(),
        mask.predicting().reshape(all),
    );
    Ok(R::new(outputs, |values| {
        let values = targets.values(values).reshape([batch, time]);
        TokenLogProbs::masked(values.narrow(1, 0, time - 1), mask.predictions())
    }))
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
