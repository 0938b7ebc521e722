//! Options from a file, before those of the command line, and options of a run as such a file.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use finetune::{Failure, write_whole};
use serde_json::{Map, Number, Value};

/// Options that say how this command is run, and not what a run is.
const OF_THE_COMMAND: [&str; 4] = ["config", "help", "resume", "timeout"];

/// The command line with the options of its `--config` before its own, which win.
///
/// # Errors
///
/// The file cannot be read, is no JSON object, or has an option that there is not.
pub(crate) fn with_file(typed: Vec<OsString>, command: &Command) -> Result<Vec<OsString>, Failure> {
    let Some(path) = config(&typed) else {
        return Ok(typed);
    };
    let fails = |error: &dyn ToString| {
        let what = error.to_string();
        Failure::from(format!("--config: {}: {what}", path.display()))
    };
    let text = fs::read_to_string(&path).map_err(|error| fails(&error))?;
    let options: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|error| fails(&format!("expected a JSON object of options: {error}")))?;
    let of_line = names(&typed);
    let mut all: Vec<OsString> = typed.iter().take(1).cloned().collect();
    for (name, value) in &options {
        let arg = find(command, name).map_err(|error| fails(&error))?;
        let loses = of_line
            .iter()
            .find(|typed| *typed == name || conflict(command, arg, typed));
        match loses {
            Some(winner) if winner != name => {
                println!(
                    "look: `{name}` of {} gives way to --{winner}",
                    path.display()
                );
            }
            Some(_) => {}
            None => all.extend(written(name, arg, value).map_err(|error| fails(&error))?),
        }
    }
    all.extend(typed.into_iter().skip(1));
    Ok(all)
}

/// The file that the command line names.
fn config(typed: &[OsString]) -> Option<PathBuf> {
    let mut typed = typed.iter();
    while let Some(word) = typed.next() {
        let word = word.to_string_lossy();
        if word == "--config" {
            let next = typed
                .next()
                .filter(|next| !next.to_string_lossy().starts_with("--"));
            return next.map(PathBuf::from);
        }
        if let Some(path) = word.strip_prefix("--config=") {
            return Some(path.into());
        }
    }
    None
}

/// The names of the options on the command line.
fn names(typed: &[OsString]) -> BTreeSet<String> {
    let words = typed.iter().map(|word| word.to_string_lossy());
    let names = words.filter_map(|word| {
        let word = word.strip_prefix("--")?;
        Some(word.split('=').next().unwrap_or(word).to_owned())
    });
    names.collect()
}

fn find<'a>(command: &'a Command, name: &str) -> Result<&'a Arg, String> {
    let known = |name: &str| {
        let mut args = command.get_arguments();
        args.find(|arg| arg.get_long() == Some(name) && !OF_THE_COMMAND[..2].contains(&name))
    };
    known(name).ok_or_else(|| {
        let other = name.trim_start_matches('-').replace('_', "-");
        match known(&other) {
            Some(_) => format!("`{name}`: there is no such option; write `{other}`"),
            None => format!("`{name}`: there is no such option; --help lists them"),
        }
    })
}

/// True if an option cannot stand beside one of the command line.
fn conflict(command: &Command, arg: &Arg, typed: &str) -> bool {
    let excludes = |one: &Arg, other: &Arg| {
        let others = command.get_arg_conflicts_with(one);
        others.iter().any(|of| of.get_id() == other.get_id())
    };
    let typed = command
        .get_arguments()
        .find(|arg| arg.get_long() == Some(typed));
    typed.is_some_and(|typed| excludes(arg, typed) || excludes(typed, arg))
}

/// An option of the file as words of a command line.
fn written(name: &str, arg: &Arg, value: &Value) -> Result<Vec<OsString>, String> {
    let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
    let takes_several = matches!(arg.get_action(), ArgAction::Append);
    let word = |value: &Value| match value {
        Value::String(text) => format!("--{name}={text}").into(),
        other => format!("--{name}={other}").into(),
    };
    match value {
        Value::Null => Ok(vec![]),
        Value::Bool(on) if is_flag => {
            let word = format!("--{name}").into();
            Ok(on.then_some(word).into_iter().collect())
        }
        other if is_flag => Err(format!("`{name}`: expected true or false, found {other}")),
        Value::Array(items) if takes_several => Ok(items.iter().map(word).collect()),
        Value::Array(_) => Err(format!("`{name}`: expected one value, found {value}")),
        Value::Bool(_) => Err(format!("`{name}`: expected a value, found {value}")),
        one => Ok(vec![word(one)]),
    }
}

/// The options that were given, as a file of them.
pub(crate) fn given(command: &Command, matches: &ArgMatches) -> Map<String, Value> {
    let args = command.get_arguments().filter_map(|arg| {
        let name = arg.get_long()?;
        let id = arg.get_id().as_str();
        let is_given = !OF_THE_COMMAND.contains(&name)
            && matches.value_source(id) == Some(ValueSource::CommandLine);
        if !is_given {
            return None;
        }
        let mut values = matches
            .get_raw(id)?
            .map(|raw| value(&raw.to_string_lossy()));
        let value = match arg.get_action() {
            ArgAction::SetTrue => Value::Bool(true),
            ArgAction::Append => Value::Array(values.collect()),
            _ => values.next()?,
        };
        Some((name.to_owned(), value))
    });
    args.collect()
}

/// A number where its text is the one that was written, otherwise the text.
fn value(text: &str) -> Value {
    match serde_json::from_str::<Number>(text) {
        Ok(number) if number.to_string() == text => number.into(),
        _ => text.into(),
    }
}

/// Writes options as a file that `--config` reads.
pub(crate) fn write(options: &Map<String, Value>, path: &Path) -> Result<(), Failure> {
    let text = format!("{:#}\n", Value::Object(options.clone()));
    write_whole(path, |scratch| {
        Ok(fs::write(scratch, text).map_err(|error| format!("{}: {error}", path.display()))?)
    })
}
