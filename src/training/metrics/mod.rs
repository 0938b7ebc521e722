//! Metrics of a batch to log: sums and counts on the device, means on the host.
//!
//! ```text
//! (batch, output)  →  BatchMetrics: small tensors, nothing read  →  read()  →  Metrics: merge
//! ```
//!
//! Keys are TRL's where TRL has the quantity, and mean the same there; what differs has another
//! key. Means are over what was counted, so merging batches of unequal size gives the metrics of
//! one large batch.
//!
//! | key | over | meaning |
//! |---|---|---|
//! | `loss` | examples | mean loss |
//! | `rewards/chosen`, `rewards/rejected` | pairs; desirable and undesirable completions; of lists, as `…/chosen`, the best-scored candidate, the mean of several | implicit rewards; those of a reward model |
//! | `rewards`, `scores`, `logps`, `mean_logps` | scored completions | implicit rewards, what the batch holds as scores, ℓ and ℓ̄ |
//! | `logps`, `mean_logps` | demonstrations, samples | ℓ and ℓ̄ |
//! | `reward`, `reward_std` | samples | what the data holds as rewards, and their standard deviation in the step |
//! | `frac_reward_zero_std` | samples | share in groups whose rewards are all equal, so that they teach nothing |
//! | `ratio` | counted tokens of samples; of a ratio of completions, samples | π/μ, policy over sampler |
//! | `sampling/sampling_logp_difference/mean` | counted tokens of samples | \|ln π/μ\|, nats: near 0 while the policy is its sampler. `ratio` does not tell, since its expectation is 1 for any policy |
//! | `clip_ratio/low_mean`, `clip_ratio/high_mean`, `clip_ratio/region_mean` | as `ratio` | share that is clipped from below, from above, from either; of CISPO whatever the advantage is, where TRL's `cispo_clip_ratio` wants a positive one |
//! | `nll` | counted tokens of demonstrations | −ln π of a token, nats |
//! | `perplexity` | counted tokens of demonstrations | e^`nll` |
//! | `rewards/margins` | pairs | chosen − rejected; unpaired: difference of the two means |
//! | `rewards/accuracies` | pairs; ordered pairs of a list | share with the better one ahead |
//! | `rewards/ties` | pairs; ordered pairs of a list | share with equal rewards, not counted as accurate |
//! | `rewards/top1` | lists with an order | share in which a best-scored candidate has the highest reward, and no worse one has it |
//! | `rewards/top1_ties` | lists with an order | share in which a worse one has it as well |
//! | `logps/chosen`, `logps/rejected` | as `rewards/chosen`, `rewards/rejected` | ℓ, nats |
//! | `mean_logps/chosen`, `mean_logps/rejected` | as `rewards/chosen`, `rewards/rejected` | ℓ̄, nats: what TRL's ORPO, and its CPO with `simpo` or `ipo`, call `logps/*` |
//! | `displacement` | pairs against a reference | share whose chosen log-prob fell: ℓ_w < ℓ°_w. 1 − it, on held-out pairs, is a signal to choose a checkpoint by |
//! | `length_mismatches` | completions against a reference; samples | share of which policy and reference, or sampler, count unequally many tokens: 0, or something is wrong |
//! | `kl` | examples; counted tokens of samples | KTO's z₀; GRPO's KL term without β |
//! | `log_odds_chosen`, `log_odds_ratio` | pairs | ORPO's od_w − od_l, and ln σ of it |
//! | `grad_norm` | steps | of all gradients before they are clipped: [`Accumulation`](crate::training::accumulation::Accumulation) |
//! | `entropy` | counted tokens | of the policy, nats |
//! | `mean_logits` | counted tokens | mean of the logits over the vocabulary |
//! | `mean_token_accuracy` | counted tokens; of pairs the chosen ones', as in TRL | share that greedy decoding takes |
//! | `entropy/chosen`, `logits/chosen`, `mean_token_accuracy/chosen`, … | counted tokens of a side of pairs | entropy, mean of the logits and greedy share of that side |
//!
//! `logps/*`, `mean_logps/*` and `displacement` are of the completions as the models have them,
//! whatever a modifier of tokens does to the comparison.

mod batch;
mod host;
mod observe;

pub use batch::BatchMetrics;
pub use host::Metrics;
pub use observe::Observe;
