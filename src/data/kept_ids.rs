use std::collections::HashMap;

use crate::tokens::Sequence;

/// Ids of examples, side by side in memory, until they take more than some bytes.
#[derive(Debug)]
pub(super) struct KeptIds {
    room: usize,
    /// Of each example: the number of its completions, the lengths of its prompt and of them, and the
    /// ids.
    words: Vec<u32>,
    starts: Vec<usize>,
    /// Marks of the completions of an example, where not all of their tokens count.
    counted: HashMap<usize, Vec<Option<Vec<bool>>>>,
}

impl KeptIds {
    /// Keeps at most so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            room: bytes,
            words: Vec::new(),
            starts: Vec::new(),
            counted: HashMap::new(),
        }
    }

    /// Keeps the sequences of the next example, which have one prompt; not once one was too many.
    pub(super) fn push(&mut self, sequences: &[Sequence]) {
        let prompt = sequences.first().map_or(&[][..], Sequence::prompt);
        let marks = sequences.iter().filter_map(Sequence::counted);
        let marks: usize = marks.map(<[bool]>::len).sum();
        let completions: usize = sequences.iter().map(|s| s.completion().len()).sum();
        let words = 2 + sequences.len() + prompt.len() + completions;
        let bytes = size_of::<usize>() + size_of::<u32>() * words + marks;
        if bytes > self.room {
            self.room = 0;
            return;
        }
        self.room -= bytes;
        if marks > 0 {
            let marks = sequences.iter().map(|s| s.counted().map(<[bool]>::to_vec));
            self.counted.insert(self.starts.len(), marks.collect());
        }
        self.starts.push(self.words.len());
        let lengths = sequences.iter().map(|s| s.completion().len());
        let head = [sequences.len(), prompt.len()].into_iter().chain(lengths);
        // No memory holds ids of 2³² tokens of one example.
        let head = head.map(|length| u32::try_from(length).expect("fewer than 2³²"));
        self.words.extend(head);
        self.words.extend(prompt);
        self.words
            .extend(sequences.iter().flat_map(Sequence::completion));
    }

    /// The sequences of an example, if they were kept.
    pub(super) fn get(&self, example: usize) -> Option<Vec<Sequence>> {
        let words = &self.words[*self.starts.get(example)?..];
        let (head, lengths) = words.split_at(2);
        let [completions, prompt] = [head[0] as usize, head[1] as usize];
        let (lengths, ids) = lengths.split_at(completions);
        let (prompt, mut ids) = ids.split_at(prompt);
        let marks = self.counted.get(&example);
        let sequences = lengths.iter().enumerate().map(|(place, length)| {
            let (completion, rest) = ids.split_at(*length as usize);
            ids = rest;
            let sequence = Sequence::new(prompt, completion);
            match marks.and_then(|marks| marks[place].as_deref()) {
                None => sequence,
                Some(marks) => sequence.with_counted(marks).expect("one mark per token"),
            }
        });
        Some(sequences.collect())
    }
}
