//! Transcripts: strings into which the speakers of a conversation are written, as HH-RLHF has them.

use super::message::{ASSISTANT, Message, USER};

const HUMAN: &str = "\n\nHuman:";
const OPENING: &str = "\n\nAssistant:";

/// Whether a string is a transcript: blanks, `Human:`, and later an answer of `Assistant:`.
pub(super) fn is_transcript(text: &str) -> bool {
    text.trim_start().starts_with(HUMAN.trim_start()) && text.contains(OPENING)
}

/// Whether `prompt` is a transcript that `completion` goes on: one of them opens the answer.
pub(super) fn goes_on(prompt: &str, completion: &str) -> bool {
    let begins = prompt.trim_start().starts_with(HUMAN.trim_start());
    begins && (is_open(prompt) || completion.starts_with(OPENING))
}

/// Whether the assistant has the word at the end of a transcript, and has said nothing yet.
fn is_open(transcript: &str) -> bool {
    transcript.trim_end().ends_with(OPENING)
}

/// The turns of a transcript that is a prompt: an answer that is only opened is none.
pub(super) fn turns_of_prompt(transcript: &str) -> Vec<Message> {
    let mut turns = turns(transcript);
    turns.truncate(turns.len() - usize::from(is_open(transcript)));
    turns
}

/// The bytes of `text` up to its last answer, with the opening of the answer.
pub(super) fn last_opening(text: &str) -> Option<usize> {
    text.rfind(OPENING).map(|place| place + OPENING.len())
}

/// The turns of a transcript, without the blanks around what is said.
pub(super) fn turns(transcript: &str) -> Vec<Message> {
    let start = transcript.find(HUMAN.trim_start()).unwrap_or(0);
    let (mut rest, mut role) = (&transcript[start + HUMAN.trim_start().len()..], USER);
    let mut turns = Vec::new();
    loop {
        let next = [(HUMAN, USER), (OPENING, ASSISTANT)]
            .into_iter()
            .filter_map(|(mark, role)| Some((rest.find(mark)?, mark, role)))
            .min();
        let end = next.map_or(rest.len(), |(place, ..)| place);
        turns.push(Message::new(role, rest[..end].trim()));
        let Some((place, mark, speaker)) = next else {
            return turns;
        };
        (rest, role) = (&rest[place + mark.len()..], speaker);
    }
}
