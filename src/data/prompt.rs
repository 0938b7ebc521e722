//! Where the prompt of a row is: given, given and repeated, or what all completions begin with.

use super::error::RowError;
use super::message::{ASSISTANT, Message, Text};

/// A prompt and its completions, all strings or all conversations.
pub(super) type Parts = (Text, Vec<Text>);

/// A prompt that a row names. `field` is its field, for errors.
pub(super) fn explicit(
    field: &str,
    prompt: Text,
    completions: Vec<Text>,
) -> Result<Parts, RowError> {
    let plain = completions.iter().all(|text| text.as_plain().is_some());
    match prompt {
        Text::Plain(_) if plain => Ok((prompt, completions)),
        Text::Plain(text) => beside_conversations(field, &text, answers(completions)),
        Text::Conversation(messages) if messages.is_empty() => {
            Err(RowError::new(field, "a message at least", "an empty list"))
        }
        Text::Conversation(messages) => {
            let mut completions = answers(completions);
            // No conversation is its own continuation: what repeats the prompt contains it.
            for completion in &mut completions {
                if completion.starts_with(&messages) {
                    completion.drain(..messages.len());
                }
            }
            Ok(conversations(messages, completions))
        }
    }
}

/// Strings beside conversations are what the assistant says.
fn answers(completions: Vec<Text>) -> Vec<Vec<Message>> {
    let messages = |text| match text {
        Text::Plain(text) => vec![Message::new(ASSISTANT, text)],
        Text::Conversation(messages) => messages,
    };
    completions.into_iter().map(messages).collect()
}

fn conversations(prompt: Vec<Message>, completions: Vec<Vec<Message>>) -> Parts {
    let completions = completions.into_iter().map(Text::Conversation).collect();
    (Text::Conversation(prompt), completions)
}

/// A string as the prompt of conversations: the user's message, which they may repeat.
fn beside_conversations(
    field: &str,
    prompt: &str,
    mut completions: Vec<Vec<Message>>,
) -> Result<Parts, RowError> {
    let said = |message: &Message| {
        message.role == "user"
            && message
                .text()
                .is_some_and(|text| text.trim() == prompt.trim())
    };
    let answers = |completion: &Vec<Message>| completion.first().is_none_or(Message::is_assistant);
    if completions.iter().all(answers) {
        return Ok(conversations(
            vec![Message::new("user", prompt)],
            completions,
        ));
    }
    let end = if let [only] = completions.as_slice() {
        only.iter().rposition(said).map(|place| place + 1)
    } else {
        let end = common(&completions);
        completions[0][..end].iter().any(said).then_some(end)
    };
    let Some(end) = end else {
        let expected = "what a user says before the completions part";
        return Err(RowError::new(field, expected, "another string"));
    };
    let prompt = split(&mut completions, end);
    Ok(conversations(prompt, completions))
}

/// How many messages all begin with; of those that are all one of them has, the last is its own.
fn common(completions: &[Vec<Message>]) -> usize {
    let first = &completions[0];
    let shared = |i: usize| completions.iter().all(|c| c.get(i) == first.get(i));
    let shortest = completions.iter().map(Vec::len).min().unwrap_or(0);
    let last = shortest.saturating_sub(1);
    (0..last).find(|&i| !shared(i)).unwrap_or(last)
}

/// Takes the first `end` messages off, which all have in common.
fn split(completions: &mut [Vec<Message>], end: usize) -> Vec<Message> {
    let mut prompt = Vec::new();
    for completion in completions {
        let rest = completion.split_off(end);
        prompt = std::mem::replace(completion, rest);
    }
    prompt
}

/// What both begin with is the prompt. `fields` are those of the two, for errors.
pub(super) fn implicit(fields: [&str; 2], chosen: Text, rejected: Text) -> Result<Parts, RowError> {
    match (chosen, rejected) {
        (Text::Plain(chosen), Text::Plain(rejected)) => {
            let end = common_text(&chosen, &rejected);
            let of = |text: &str| Text::Plain(text.to_owned());
            let completions = vec![of(&chosen[end..]), of(&rejected[end..])];
            Ok((of(&chosen[..end]), completions))
        }
        (Text::Conversation(chosen), Text::Conversation(rejected)) => {
            for (field, messages) in fields.into_iter().zip([&chosen, &rejected]) {
                if messages.is_empty() {
                    return Err(RowError::new(field, "a message at least", "an empty list"));
                }
            }
            let mut completions = vec![chosen, rejected];
            let end = common(&completions);
            if end == 0 {
                let expected = "messages that begin as the chosen ones, with a prompt";
                return Err(RowError::new(fields[1], expected, "nothing in common"));
            }
            let prompt = split(&mut completions, end);
            Ok(conversations(prompt, completions))
        }
        (Text::Plain(_), _) => {
            let expected = "a string, as the chosen one";
            Err(RowError::new(fields[1], expected, "messages"))
        }
        (Text::Conversation(_), _) => {
            let expected = "messages, as the chosen ones";
            Err(RowError::new(fields[1], expected, "a string"))
        }
    }
}

/// The bytes of what both begin with, as TRL takes it: less a space at its end, and of a string
/// that the other one continues, less its last character. No side is left empty.
fn common_text(chosen: &str, rejected: &str) -> usize {
    let pairs = chosen.char_indices().zip(rejected.chars());
    let Some(((end, _), _)) = pairs.clone().find(|((_, w), l)| w != l) else {
        // Where the last character of the shorter one begins.
        return pairs.last().map_or(0, |((end, _), _)| end);
    };
    end - usize::from(chosen[..end].ends_with(' '))
}
