//! The prompt of a row: given, given and repeated, or what all completions begin with.

use super::error::RowError;
use super::message::{ASSISTANT, Message, Text, USER};

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
            for completion in &mut completions {
                // No conversation is its own continuation: what repeats the prompt contains it.
                if common([&messages, completion]) == messages.len() {
                    completion.drain(..messages.len());
                } else if repeats_a_part(&messages, completion) {
                    let expected = "what the completions begin with, whole or not at all";
                    let found = "a prompt of which one repeats a part";
                    return Err(RowError::new(field, expected, found));
                }
            }
            Ok(conversations(messages, completions))
        }
    }
}

/// Whether a completion opens with what the user said in the prompt, which waits for an answer.
fn repeats_a_part(prompt: &[Message], completion: &[Message]) -> bool {
    let answered = prompt.last().is_some_and(Message::is_assistant);
    let is_prompt = |message: &Message| {
        message.role == USER && prompt.iter().any(|before| before.has_same_content(message))
    };
    let opening = completion.iter().take_while(|m| !m.is_assistant());
    !answered && opening.into_iter().any(is_prompt)
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
    let is_prompt = |message: &Message| {
        message.role == USER
            && message
                .text()
                .is_some_and(|text| text.trim() == prompt.trim())
    };
    let answers = |completion: &Vec<Message>| completion.first().is_none_or(Message::is_assistant);
    let mut repeating: Vec<_> = completions.iter_mut().filter(|c| !answers(c)).collect();
    let end = match repeating.as_slice() {
        [] => {
            let prompt = vec![Message::new(USER, prompt)];
            return Ok(conversations(prompt, completions));
        }
        [only] => only.iter().rposition(is_prompt).map(|place| place + 1),
        [first, others @ ..] => {
            let shared = others.iter().map(|other| common([first, other])).min();
            let end = before_the_last(&repeating, shared.unwrap_or(0));
            first[..end].iter().any(is_prompt).then_some(end)
        }
    };
    let Some(end) = end else {
        let expected = "what a user says before the completions part";
        return Err(RowError::new(field, expected, "another string"));
    };
    let prompt = split(&mut repeating, end);
    Ok(conversations(prompt, completions))
}

/// The number of messages that both begin with.
fn common([a, b]: [&[Message]; 2]) -> usize {
    a.iter()
        .zip(b)
        .take_while(|(a, b)| a.is_same_message(b))
        .count()
}

/// At most `end`; of a conversation that has no more messages, the last one is its completion.
fn before_the_last(completions: &[&mut Vec<Message>], end: usize) -> usize {
    let shortest = completions.iter().map(|c| c.len()).min().unwrap_or(0);
    end.min(shortest.saturating_sub(1))
}

/// Takes the first `end` messages off, which all have in common: those of the first one.
fn split(completions: &mut [&mut Vec<Message>], end: usize) -> Vec<Message> {
    let mut prompts = completions.iter_mut().map(|completion| {
        let rest = completion.split_off(end);
        std::mem::replace(*completion, rest)
    });
    let prompt = prompts.next().unwrap_or_default();
    prompts.for_each(drop);
    prompt
}

/// Makes a prompt of what both begin with. `fields` are those of the two, for errors.
pub(super) fn implicit(fields: [&str; 2], chosen: Text, rejected: Text) -> Result<Parts, RowError> {
    match (chosen, rejected) {
        (Text::Plain(chosen), Text::Plain(rejected)) => {
            let end = common_text(&chosen, &rejected);
            let plain = |text: &str| Text::Plain(text.to_owned());
            let completions = vec![plain(&chosen[end..]), plain(&rejected[end..])];
            Ok((plain(&chosen[..end]), completions))
        }
        (Text::Conversation(chosen), Text::Conversation(rejected)) => {
            for (field, messages) in fields.into_iter().zip([&chosen, &rejected]) {
                if messages.is_empty() {
                    return Err(RowError::new(field, "a message at least", "an empty list"));
                }
            }
            let (mut chosen, mut rejected) = (chosen, rejected);
            // To the letter, as TRL compares them.
            let same = chosen.iter().zip(&rejected).take_while(|(w, l)| w == l);
            let same = same.count();
            let mut both = [&mut chosen, &mut rejected];
            let end = before_the_last(&both, same);
            if end == 0 {
                let expected = "messages that begin as the chosen ones, with a prompt";
                return Err(RowError::new(fields[1], expected, "nothing in common"));
            }
            let prompt = split(&mut both, end);
            Ok(conversations(prompt, vec![chosen, rejected]))
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
