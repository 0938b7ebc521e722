//! The prompt of a row: given, given and repeated, or what all completions begin with.

use super::error::RowError;
use super::message::{ASSISTANT, Message, Text, USER};
use super::transcript::{goes_on, is_transcript, last_opening, turns, turns_of_prompt};

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
        _ => conversation(field, prompt, completions),
    }
}

/// The same parts whose strings are messages: a prompt is what the user says, a completion what the
/// assistant answers, and transcripts are turns.
pub(super) fn explicit_turns(
    field: &str,
    prompt: Text,
    completions: Vec<Text>,
) -> Result<Parts, RowError> {
    let start = prompt.as_plain();
    let turns_of = |completion| match (start, transcript(completion)) {
        (Some(start), Text::Plain(text)) if goes_on(start, &text) => {
            let whole = turns(&format!("{start}{text}"));
            Text::Conversation(whole[turns_of_prompt(start).len()..].to_vec())
        }
        (_, Text::Plain(text)) => Text::Conversation(vec![Message::new(ASSISTANT, text)]),
        (_, messages) => messages,
    };
    let is_turns = |text: &str| {
        let mut plain = completions.iter().filter_map(Text::as_plain);
        is_transcript(text) || plain.any(|completion| goes_on(text, completion))
    };
    let is_turns = start.is_some_and(is_turns);
    let completions = completions.iter().cloned().map(turns_of).collect();
    let prompt = match prompt {
        Text::Plain(text) if is_turns => Text::Conversation(turns_of_prompt(&text)),
        prompt => prompt,
    };
    conversation(field, prompt, completions)
}

fn conversation(field: &str, prompt: Text, completions: Vec<Text>) -> Result<Parts, RowError> {
    match prompt {
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
        (Text::Conversation(mut chosen), Text::Conversation(mut rejected)) => {
            for (field, messages) in fields.into_iter().zip([&chosen, &rejected]) {
                if messages.is_empty() {
                    return Err(RowError::new(field, "a message at least", "an empty list"));
                }
            }
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
        // A string beside a conversation is another last answer of it.
        (Text::Plain(chosen), Text::Conversation(rejected)) => {
            let error = || RowError::new(fields[1], "a string, as the chosen one", "messages");
            let (prompt, rejected) = last_answer(rejected).ok_or_else(error)?;
            let chosen = vec![Message::new(ASSISTANT, chosen)];
            Ok(conversations(prompt, vec![chosen, rejected]))
        }
        (Text::Conversation(chosen), Text::Plain(rejected)) => {
            let error = || RowError::new(fields[1], "messages, as the chosen ones", "a string");
            let (prompt, chosen) = last_answer(chosen).ok_or_else(error)?;
            let rejected = vec![Message::new(ASSISTANT, rejected)];
            Ok(conversations(prompt, vec![chosen, rejected]))
        }
    }
}

/// The turns of a string that is a transcript; another text as it is.
pub(super) fn transcript(text: Text) -> Text {
    match text {
        Text::Plain(text) if is_transcript(&text) => Text::Conversation(turns(&text)),
        text => text,
    }
}

/// The same where strings become messages, which only transcripts can: what other strings begin
/// with in common ends inside an answer. `field` is that of the prompt.
pub(super) fn implicit_turns(
    field: &str,
    fields: [&str; 2],
    chosen: Text,
    rejected: Text,
) -> Result<Parts, RowError> {
    let (chosen, rejected) = (transcript(chosen), transcript(rejected));
    if chosen.as_plain().is_some() && rejected.as_plain().is_some() {
        let [w, l] = fields;
        let expected = format!(
            "the prompt, since `{w}` and `{l}` are strings that become messages, and what both \
             begin with ends inside an answer (name its column, or keep strings as text)"
        );
        return Err(RowError::new(field, expected, "nothing"));
    }
    implicit(fields, chosen, rejected)
}

/// The completion of a conversation without a prompt of its own: its last answer.
pub(super) fn implicit_answer(field: &str, conversation: Vec<Message>) -> Result<Parts, RowError> {
    let expected = "a conversation that ends with an answer, since there is no prompt";
    let error = || RowError::new(field, expected, "another one");
    let (prompt, answer) = last_answer(conversation).ok_or_else(error)?;
    Ok(conversations(prompt, vec![answer]))
}

/// The parts of a conversation whose answers are all of the completion: the prompt ends before the
/// first of them.
pub(super) fn first_answer(field: &str, mut conversation: Vec<Message>) -> Result<Parts, RowError> {
    let expected = "messages with an answer of the assistant, and another message before it";
    let error = |found: &str| RowError::new(field, expected, found);
    match conversation.iter().position(Message::is_assistant) {
        None => Err(error("no answer")),
        Some(0) => Err(error("an answer at the beginning")),
        Some(first) => {
            let answers = conversation.split_off(first);
            Ok(conversations(conversation, vec![answers]))
        }
    }
}

/// A conversation up to its last message, and that message, if it answers the others.
fn last_answer(mut messages: Vec<Message>) -> Option<(Vec<Message>, Vec<Message>)> {
    let last = messages.pop().filter(Message::is_assistant)?;
    (!messages.is_empty()).then(|| (messages, vec![last]))
}

/// The bytes of what both begin with, as TRL takes it: less a space at its end, and of a string
/// that the other one continues, less its last character. No side is left empty. Of two transcripts
/// it ends where the answer opens, which both begin with otherwise by chance.
fn common_text(chosen: &str, rejected: &str) -> usize {
    let end = common_characters(chosen, rejected);
    let are_transcripts = is_transcript(chosen) && is_transcript(rejected);
    let opening = last_opening(&chosen[..end]).filter(|_| are_transcripts);
    opening.unwrap_or(end)
}

fn common_characters(chosen: &str, rejected: &str) -> usize {
    let pairs = chosen.char_indices().zip(rejected.chars());
    let Some(((end, _), _)) = pairs.clone().find(|((_, w), l)| w != l) else {
        // Where the last character of the shorter one begins.
        return pairs.last().map_or(0, |((end, _), _)| end);
    };
    end - usize::from(chosen[..end].ends_with(' '))
}
