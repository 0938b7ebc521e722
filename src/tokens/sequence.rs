use crate::error::InvalidInput;

/// The token ids of a prompt and one completion of it, and what else its log-probability depends
/// on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sequence {
    ids: Vec<u32>,
    prompt: usize,
    /// One per token of the completion; `None` where all of them count.
    counted: Option<Vec<bool>>,
    context: Option<[u8; 32]>,
}

impl Sequence {
    /// Takes a prompt and its completion, of which every token counts.
    pub fn new(prompt: &[u32], completion: &[u32]) -> Self {
        Self {
            ids: [prompt, completion].concat(),
            prompt: prompt.len(),
            counted: None,
            context: None,
        }
    }

    /// Counts only those tokens of the completion that are marked here, such as the turns of the
    /// assistant in a conversation, without what a tool answered.
    ///
    /// # Errors
    ///
    /// There is not one mark per token of the completion.
    pub fn with_counted(self, counted: &[bool]) -> Result<Self, InvalidInput> {
        let tokens = self.completion().len();
        if counted.len() != tokens {
            let expected = format!("{tokens} marks, one per token of the completion");
            return Err(InvalidInput::new("counted", expected, counted.len()));
        }
        // One form per meaning, so that equal sequences have equal hashes.
        let all = counted.iter().all(|&counted| counted);
        Ok(Self {
            counted: (!all).then(|| counted.to_vec()),
            ..self
        })
    }

    /// Adds the hash of what the model sees beside the tokens: images, audio, a document. This crate
    /// only tells sequences apart by it.
    pub fn with_context(self, hash: [u8; 32]) -> Self {
        Self {
            context: Some(hash),
            ..self
        }
    }

    /// Ids of the prompt, then those of the completion.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The ids of the prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.ids[..self.prompt]
    }

    /// The ids of the completion.
    pub fn completion(&self) -> &[u32] {
        &self.ids[self.prompt..]
    }

    /// Marks of the tokens of the completion that count; `None` where all of them do.
    pub fn counted(&self) -> Option<&[bool]> {
        self.counted.as_deref()
    }

    /// The hash of what the model sees beside the tokens.
    pub fn context(&self) -> Option<&[u8; 32]> {
        self.context.as_ref()
    }

    /// Number of tokens that a log-probability of this sequence sums: those of the completion that
    /// count. The first token of all is never among them, since nothing predicts it.
    pub fn length(&self) -> usize {
        (1..self.ids.len()).filter(|&t| self.counts(t)).count()
    }

    /// Whether token `t` is of the completion and counts.
    pub(super) fn counts(&self, t: usize) -> bool {
        let inside = self.prompt..self.ids.len();
        let counted = self.counted.as_ref();
        inside.contains(&t) && counted.is_none_or(|counted| counted[t - self.prompt])
    }
}
