use std::num::NonZero;
use std::thread;

use super::load::OnError;
use super::truncate::Truncation;
use super::turns::Turns;

/// Options of [`Tokenized`](super::Tokenized). A [`Truncation`] alone is one, with the other defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenizeOptions {
    pub(super) truncation: Truncation,
    pub(super) turns: Turns,
    pub(super) on_error: OnError,
    threads: Option<NonZero<usize>>,
    pub(super) memory: usize,
}

impl TokenizeOptions {
    /// Options with this truncation; the assistant's turns count, and a bad row is an error.
    pub fn new(truncation: Truncation) -> Self {
        Self {
            truncation,
            turns: Turns::default(),
            on_error: OnError::default(),
            threads: None,
            memory: 1 << 30,
        }
    }

    /// Sets the messages of a conversation that count; the default is [`Turns::Assistant`].
    pub fn with_turns(self, turns: Turns) -> Self {
        Self { turns, ..self }
    }

    /// Sets the treatment of a row that cannot be read or tokenized; the default is
    /// [`OnError::Stop`].
    pub fn with_on_error(self, on_error: OnError) -> Self {
        Self { on_error, ..self }
    }

    /// Sets the number of threads that tokenize; the default is one for each processor. The result
    /// does not depend on it.
    pub fn with_threads(self, threads: NonZero<usize>) -> Self {
        Self {
            threads: Some(threads),
            ..self
        }
    }

    /// Sets the bytes of ids that [`Tokenized`](super::Tokenized) keeps in memory; the default is 1 GiB. Ids of further
    /// examples are made again whenever they are asked for; with 0 those of all.
    pub fn with_memory(self, bytes: usize) -> Self {
        Self {
            memory: bytes,
            ..self
        }
    }

    pub(super) fn threads(&self) -> NonZero<usize> {
        let all = || thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
        self.threads.unwrap_or_else(all)
    }
}

impl From<Truncation> for TokenizeOptions {
    fn from(truncation: Truncation) -> Self {
        Self::new(truncation)
    }
}
