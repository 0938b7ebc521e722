use std::collections::BTreeMap;
use std::fmt;

use burn::tensor::Device;
use serde::{Serialize, Serializer};

use crate::training::reducer::{ReduceError, Reducer, sum_numbers};

/// The keys of what is made of other means.
const MARGINS: &str = "rewards/margins";
const PERPLEXITY: &str = "perplexity";

/// Means by key, on the host, in f64.
///
/// `Display` prints them, one a line, and `Serialize` writes them as one object of means: a line
/// of a log. Both leave out what nothing was counted of, as [`iter`](Self::iter) does. JSON has no
/// NaN and no ∞: `serde_json` writes `null`. `{metrics:.6}` prints six decimals instead of four.
///
/// ```
/// use burn_preference::Metrics;
///
/// let mut metrics = Metrics::default();
/// metrics.add("loss", 1.5, 2.0); // a sum of 1.5 over two examples
/// assert_eq!(metrics.to_string(), "loss                     0.7500\n");
/// assert_eq!(serde_json::to_string(&metrics)?, r#"{"loss":0.75}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    sums: BTreeMap<String, (f64, f64)>,
}

impl Metrics {
    /// Adds `count` values with the given sum.
    pub fn add(&mut self, key: impl Into<String>, sum: f64, count: f64) {
        let entry = self.sums.entry(key.into()).or_default();
        entry.0 += sum;
        entry.1 += count;
    }

    /// Adds the sums and counts of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (key, (sum, count)) in &other.sums {
            self.add(key.as_str(), *sum, *count);
        }
    }

    /// The sums and counts of all workers, rounded to f32 on the way through `device`.
    ///
    /// A worker without any metrics takes part: it had no examples. The others have the same keys.
    ///
    /// # Errors
    ///
    /// The workers do not come together, or their keys differ: see [`ReduceError`].
    pub fn reduced(&self, reducer: &dyn Reducer, device: &Device) -> Result<Self, ReduceError> {
        let keys: Vec<&str> = self.sums.keys().map(String::as_str).collect();
        let own = keys.join("\n");
        let sum = |values: &[f64]| sum_numbers(reducer, values, device);
        // Names, as a mean over those that have some: a worker without examples learns them so.
        let holds = !own.is_empty();
        let lengths = sum(&[f64::from(u8::from(holds)), own.len() as f64])?;
        let holders = lengths[0];
        if holders == 0.0 {
            return Ok(Self::default());
        }
        let length = lengths[1] / holders;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a mean of lengths"
        )]
        let places = length as usize;
        let mut letters: Vec<f64> = own.bytes().map(f64::from).collect();
        letters.resize(places, 0.0);
        let letters: Vec<f64> = sum(&letters)?
            .into_iter()
            .map(|sum| sum / holders)
            .collect();
        let is_mean =
            own.len() as f64 == length && own.bytes().map(f64::from).eq(letters.iter().copied());
        // The number of keys is the same on every worker, whatever the letters are.
        let count = letters.iter().filter(|l| **l == f64::from(b'\n')).count() + 1;
        let mut values = vec![f64::from(u8::from(holds && !is_mean))];
        let sums = self.sums.values().flat_map(|(sum, count)| [*sum, *count]);
        values.extend(sums);
        values.resize(1 + 2 * count, 0.0);
        let values = sum(&values)?;
        if values[0] > 0.0 {
            let keys = keys.join(", ");
            return Err(ReduceError::Metrics { keys });
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a byte, which all holders have alike"
        )]
        let letters: Vec<u8> = letters.into_iter().map(|letter| letter as u8).collect();
        let names = String::from_utf8_lossy(&letters);
        let mut all = Self::default();
        for (name, value) in names.split('\n').zip(values[1..].chunks_exact(2)) {
            all.add(name, value[0], value[1]);
        }
        Ok(all)
    }

    /// The mean of `key`; none where nothing was counted.
    pub fn get(&self, key: &str) -> Option<f64> {
        if let Some((sum, count)) = self.sums.get(key) {
            return (*count > 0.0).then(|| sum / count);
        }
        match key {
            // Unpaired completions have no margin each, only the difference of the two means.
            MARGINS => Some(self.get("rewards/chosen")? - self.get("rewards/rejected")?),
            PERPLEXITY => Some(self.get("nll")?.exp()),
            _ => None,
        }
    }

    /// Whether `key` was observed, even if nothing of it was counted.
    pub fn contains(&self, key: &str) -> bool {
        let has = |key: &str| self.sums.contains_key(key);
        let derived = match key {
            MARGINS => has("rewards/chosen") && has("rewards/rejected"),
            PERPLEXITY => has("nll"),
            _ => false,
        };
        has(key) || derived
    }

    /// Number of values that `key` is the mean of; 0 for the margin of unpaired completions and for
    /// the perplexity, which are made of other means.
    pub fn count(&self, key: &str) -> f64 {
        self.sums.get(key).map_or(0.0, |(_, count)| *count)
    }

    /// Every key with its sum and its count.
    #[cfg(feature = "optim")]
    pub(super) fn sums(&self) -> impl Iterator<Item = (&str, f64, f64)> {
        let sums = self.sums.iter();
        sums.map(|(key, (sum, count))| (key.as_str(), *sum, *count))
    }

    /// Every key that has a mean, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        let derived = [MARGINS, PERPLEXITY].into_iter();
        let derived = derived.filter(|key| !self.sums.contains_key(*key));
        let mut keys: Vec<&str> = self
            .sums
            .keys()
            .map(String::as_str)
            .chain(derived)
            .collect();
        keys.sort_unstable();
        keys.into_iter()
            .filter_map(|key| self.get(key).map(|mean| (key, mean)))
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(4);
        for (key, mean) in self.iter() {
            writeln!(f, "{key:24} {mean:.digits$}")?;
        }
        Ok(())
    }
}

impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}
