use std::cmp::Reverse;
use std::fmt;

use serde::{Serialize, Serializer};

use super::finding::{Finding, Severity};

/// All findings of a check, the worst first, and what it had no means to look at.
///
/// `Display` prints a line each; `Serialize` writes findings with their severity and sentence.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Findings {
    #[serde(serialize_with = "with_sentences")]
    findings: Vec<Finding>,
    not_checked: Vec<&'static str>,
}

impl Findings {
    pub(super) fn new(mut findings: Vec<Finding>, not_checked: Vec<&'static str>) -> Self {
        findings.sort_by_key(|finding| Reverse(finding.severity()));
        Self {
            findings,
            not_checked,
        }
    }

    /// Every finding: errors, then warnings.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter()
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether an error is among them.
    pub fn has_errors(&self) -> bool {
        self.iter()
            .any(|finding| finding.severity() == Severity::Error)
    }

    /// Sentences on what was not looked at, and what it would take.
    pub fn not_checked(&self) -> &[&'static str] {
        &self.not_checked
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            writeln!(f, "first batch: nothing wrong found")?;
        }
        for finding in self.iter() {
            match finding.severity() {
                Severity::Error => writeln!(f, "error: {finding}")?,
                Severity::Warning => writeln!(f, "warning: {finding}")?,
            }
        }
        for what in &self.not_checked {
            writeln!(f, "not checked: {what}")?;
        }
        Ok(())
    }
}

fn with_sentences<S: Serializer>(findings: &[Finding], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct WithSentence<'a> {
        severity: Severity,
        message: String,
        #[serde(flatten)]
        finding: &'a Finding,
    }
    serializer.collect_seq(findings.iter().map(|finding| WithSentence {
        severity: finding.severity(),
        message: finding.to_string(),
        finding,
    }))
}
