use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

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
