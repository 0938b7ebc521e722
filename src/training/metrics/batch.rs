use std::borrow::Cow;

use burn::tensor::{Bool, DType, FloatDType, Tensor, TensorReadError};
#[cfg(feature = "optim")]
use burn::tensor::{Device, TensorData};

use super::host::Metrics;
use crate::batch::{Pair, Ratios};
use crate::error::InvalidInput;
use crate::log_probs::{LogProbs, TokenLogProbs, TokenStatistics};
use crate::math::{log_odds, log_sigmoid};

/// The metrics of one batch, or of several, still on the device.
///
/// A key that comes twice adds up: its mean is over everything that was counted under it.
#[derive(Debug, Clone, Default)]
pub struct BatchMetrics {
    sums: Vec<KeyedSum>,
}

#[derive(Debug, Clone)]
struct KeyedSum {
    key: Cow<'static, str>,
    /// Sum and count are `[1]` each.
    sum: Tensor<1>,
    count: Tensor<1>,
}

impl BatchMetrics {
    /// Adds the mean of a value per example: your own, or one of an objective.
    pub fn with(self, key: impl Into<Cow<'static, str>>, values: Tensor<1>) -> Self {
        let all = values.zeros_like().equal_elem(0.0);
        self.counted(key, values, all)
    }

    /// Adds the mean of a value over those examples that `counted` marks.
    ///
    /// # Errors
    ///
    /// Shapes or devices differ.
    pub fn with_counted(
        self,
        key: impl Into<Cow<'static, str>>,
        values: Tensor<1>,
        counted: Tensor<1, Bool>,
    ) -> Result<Self, InvalidInput> {
        InvalidInput::check_shape("counted", &values.shape(), &counted.shape())?;
        InvalidInput::check_device("counted", &values.device(), &counted.device())?;
        Ok(self.counted(key, values, counted))
    }

    pub(super) fn counted(
        mut self,
        key: impl Into<Cow<'static, str>>,
        values: Tensor<1>,
        counted: Tensor<1, Bool>,
    ) -> Self {
        let values = values.without_autodiff();
        let ones = values.ones_like();
        let not_counted = counted.without_autodiff().bool_not();
        self.sums.push(KeyedSum {
            key: key.into(),
            sum: values.mask_fill(not_counted.clone(), 0.0).sum_dim(0),
            count: ones.mask_fill(not_counted, 0.0).sum_dim(0),
        });
        self
    }

    /// Sums and counts that were read back, on `device` again.
    #[cfg(feature = "optim")]
    pub(crate) fn on_device(metrics: &Metrics, device: &Device) -> Self {
        let number =
            |value: f64| Tensor::from_data(TensorData::from([value]), (device, DType::F32));
        let sums = metrics.sums().map(|(key, sum, count)| KeyedSum {
            key: key.to_owned().into(),
            sum: number(sum),
            count: number(count),
        });
        Self {
            sums: sums.collect(),
        }
    }

    /// The metrics of both: of the micro-batches of a step, which are then read back at once.
    pub fn merge(mut self, other: Self) -> Self {
        self.sums.extend(other.sums);
        self
    }

    /// These metrics with `prefix` before every key: of one reference among several, say.
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        for KeyedSum { key, .. } in &mut self.sums {
            *key = format!("{prefix}{key}").into();
        }
        self
    }

    /// Adds ORPO's `log_odds_chosen` and `log_odds_ratio`.
    pub fn with_log_odds<L: LogProbs<1>>(self, batch: &Pair<L>) -> Self {
        let log_odds = batch
            .map_ref(|y| log_odds(y.policy().mean().without_autodiff()))
            .margin();
        self.with("log_odds_chosen", log_odds.clone())
            .with("log_odds_ratio", log_sigmoid(log_odds))
    }

    /// Adds `entropy`, `mean_token_accuracy` and `mean_logits` of all that `statistics` counts.
    pub fn with_statistics(self, statistics: &TokenStatistics) -> Self {
        self.with_tokens("entropy", statistics, TokenStatistics::entropy)
            .with_tokens("mean_token_accuracy", statistics, TokenStatistics::top1)
            .with_tokens("mean_logits", statistics, TokenStatistics::mean_logits)
    }

    /// Adds the statistics of each side of pairs, and under TRL's keys `entropy` of both sides and
    /// `mean_token_accuracy` of the chosen one.
    pub fn with_pair_statistics(self, statistics: &Pair<TokenStatistics>) -> Self {
        let Pair { chosen, rejected } = statistics;
        self.with_tokens("entropy", chosen, TokenStatistics::entropy)
            .with_tokens("entropy", rejected, TokenStatistics::entropy)
            .with_tokens("entropy/chosen", chosen, TokenStatistics::entropy)
            .with_tokens("entropy/rejected", rejected, TokenStatistics::entropy)
            .with_tokens("mean_token_accuracy", chosen, TokenStatistics::top1)
            .with_tokens("mean_token_accuracy/chosen", chosen, TokenStatistics::top1)
            .with_tokens(
                "mean_token_accuracy/rejected",
                rejected,
                TokenStatistics::top1,
            )
            .with_tokens("logits/chosen", chosen, TokenStatistics::mean_logits)
            .with_tokens("logits/rejected", rejected, TokenStatistics::mean_logits)
    }

    fn with_tokens(
        self,
        key: &'static str,
        statistics: &TokenStatistics,
        value: fn(&TokenStatistics) -> Tensor<2>,
    ) -> Self {
        self.over_tokens(key, value(statistics), statistics.mask())
    }

    /// Adds `nll`, −ln π of a token in nats, of all tokens that count. The metric `perplexity` is
    /// made of it: e^nll.
    pub fn with_nll(self, tokens: &TokenLogProbs) -> Self {
        self.over_tokens("nll", -tokens.log_probs(), tokens.mask())
    }

    /// Adds `ratio` and TRL's `clip_ratio/low_mean`, `clip_ratio/high_mean` and
    /// `clip_ratio/region_mean` of the ratios that count, and `kl` of the tokens where there is a KL
    /// term.
    pub(super) fn with_ratios(self, ratios: &Ratios) -> Self {
        let of = ratios.ratios();
        let share = |marks: &Tensor<2, Bool>| marks.clone().float().cast(of.dtype());
        let [low, high] = ratios.clipped();
        let region = low.clone().bool_or(high.clone());
        let metrics = self
            .over_tokens("ratio", of.clone(), ratios.counted())
            .over_tokens("clip_ratio/low_mean", share(low), ratios.counted())
            .over_tokens("clip_ratio/high_mean", share(high), ratios.counted())
            .over_tokens("clip_ratio/region_mean", share(&region), ratios.counted());
        match ratios.kl() {
            Some((kl, counted)) => metrics.over_tokens("kl", kl.clone(), counted.clone()),
            None => metrics,
        }
    }

    pub(super) fn over_tokens(
        self,
        key: &'static str,
        values: Tensor<2>,
        mask: Tensor<2, Bool>,
    ) -> Self {
        self.counted(key, values.flatten(0, 1), mask.flatten(0, 1))
    }

    /// Reads all sums and counts back, in one transfer.
    ///
    /// # Errors
    ///
    /// The device fails to execute what is still queued.
    pub fn read(self) -> Result<Metrics, TensorReadError> {
        let mut metrics = Metrics::default();
        let Some(first) = self.sums.first() else {
            return Ok(metrics);
        };
        // A column in f32 beside a policy in f64, or two devices, still make one tensor.
        let device = first.sum.device();
        let wide = self.sums.iter().any(|s| s.sum.dtype() == DType::F64);
        let dtype = if wide {
            FloatDType::F64
        } else {
            FloatDType::F32
        };
        let numbers = |s: &KeyedSum| [s.sum.clone(), s.count.clone()];
        let numbers = self.sums.iter().flat_map(numbers);
        let packed = numbers.map(|number| number.to_device(&device).cast(dtype));
        let packed = Tensor::cat(packed.collect(), 0);
        let values: Vec<f64> = packed.try_into_data()?.iter::<f64>().collect();
        for (KeyedSum { key, .. }, value) in self.sums.into_iter().zip(values.chunks_exact(2)) {
            metrics.add(key, value[0], value[1]);
        }
        Ok(metrics)
    }
}
