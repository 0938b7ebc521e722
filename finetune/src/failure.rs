//! The error of a run.

/// An error as the program prints it, behind its context.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
