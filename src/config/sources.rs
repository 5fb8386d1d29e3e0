//! Where values come from: flags, the environment, and a `.env` file.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::rc::Rc;

use clap::{Arg, ArgAction};

use super::{Command, Config, ConfigError, Problem, Section, VARIABLES, Variable};

/// What `--version` prints.
const VERSION: &str = concat!("livechat-ws ", env!("CARGO_PKG_VERSION"), "\n");

/// Reads the command line, the environment and the `.env` file, in the order of their strength.
///
/// `args` has the program's name first, as [`std::env::args_os`] does. A `.env` file that does not exist is none.
///
/// # Errors
///
/// A malformed command line, or everything that is wrong with the values and with the lines of `.env`.
pub fn load(
    args: impl IntoIterator<Item = OsString>,
    env: impl Fn(&str) -> Option<String>,
    dotenv: Option<&Path>,
) -> Result<Command, ConfigError> {
    let flags = match command().try_get_matches_from(args) {
        Ok(flags) => flags,
        Err(error) => {
            return match error.kind() {
                clap::error::ErrorKind::DisplayHelp => Ok(Command::Help(error.render().to_string())),
                clap::error::ErrorKind::DisplayVersion => Ok(Command::Version(VERSION.to_owned())),
                _ => Err(ConfigError::Usage(
                    error.render().to_string().trim_end().to_owned(),
                )),
            };
        }
    };
    let (file, broken_lines) = dotenv.map(read_dotenv).unwrap_or_default();
    let lookup = |name: &str| {
        let flag = flags.try_get_one::<String>(name).ok().flatten().cloned();
        flag.or_else(|| env(name)).or_else(|| file.get(name).cloned())
    };
    let config = match (Config::from_lookup(&lookup), broken_lines) {
        (Ok(config), lines) if lines.is_empty() => Box::new(config),
        (Ok(_), lines) => return Err(ConfigError::Invalid(lines)),
        (Err(ConfigError::Invalid(problems)), mut lines) => {
            lines.extend(problems);
            return Err(ConfigError::Invalid(lines));
        }
        (Err(error), _) => return Err(error),
    };
    Ok(if flags.get_flag("check-config") {
        Command::CheckConfig(config)
    } else if flags.get_flag("healthcheck") {
        Command::Healthcheck(config)
    } else {
        Command::Serve(config)
    })
}

/// The command line, made of the table.
fn command() -> clap::Command {
    let order = |section: Section| {
        VARIABLES
            .iter()
            .filter(move |variable| variable.section == section)
    };
    let mut command = clap::Command::new("livechat-ws")
        .about("A WebSocket delivery server for live chat")
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(
            "Each flag is also a variable of the environment and of a .env file in the working directory: a flag wins \
             over the environment, and that over .env. Durations are written 500ms, 25s or 2m; sizes are in bytes. \
             A wrong value ends the program with status 64 before a port is opened.",
        )
        .override_usage("livechat-ws [OPTIONS]")
        .args_override_self(true)
        .max_term_width(110)
        .arg(switch("check-config", "Check the configuration and exit"))
        .arg(switch("healthcheck", "Ask the running server of this configuration for its health and exit: 0 or 1"));
    for section in Section::ALL {
        command = command
            .next_help_heading(section.title())
            .args(order(*section).map(flag));
    }
    command
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
}

fn flag(variable: &'static Variable) -> Arg {
    let arg = Arg::new(variable.name)
        .long(variable.flag())
        // The variable's own spelling, too: --MAX_MESSAGE_BYTES=65536.
        .alias(variable.name)
        .value_name(variable.value)
        .help(format!(
            "{} [{}={}]",
            variable.help, variable.name, variable.default
        ))
        .allow_negative_numbers(true)
        .action(ArgAction::Set);
    if variable.value == "BOOL" {
        arg.num_args(0..=1).default_missing_value("true")
    } else {
        arg
    }
}

/// The values of a `.env` file, and its broken lines, each with its number.
fn read_dotenv(path: &Path) -> (HashMap<String, String>, Vec<Problem>) {
    let mut values = HashMap::new();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return (values, Vec::new()),
        Err(error) => {
            let accepted = format!("a readable text file is accepted: {error}");
            return (
                values,
                vec![Problem {
                    name: path.display().to_string(),
                    value: None,
                    accepted,
                }],
            );
        }
    };
    let mut problems = Vec::new();
    let lines_read = Rc::new(Cell::new(0));
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut items = dotenvy::Iter::new(Lines {
        rest: text.as_bytes(),
        begun: Rc::clone(&lines_read),
    });
    loop {
        let first_line = lines_read.get() + 1;
        match items.next() {
            None => return (values, problems),
            // The last of several lines wins, as it does in a shell.
            Some(Ok((name, value))) => {
                values.insert(name, value);
            }
            // Its text stays out of the message: it may be a password's line.
            Some(Err(_)) => problems.push(Problem {
                name: broken_place(path, first_line, lines_read.get(), text),
                value: None,
                accepted: "NAME=value is accepted; a value with blanks or any of $ # \\ \" in single quotes"
                    .to_owned(),
            }),
        }
    }
}

/// The file and the line: the last that was read, or, where a quote was never closed and all the rest was read in
/// search of its end, the first.
fn broken_place(path: &Path, first: usize, last: usize, text: &str) -> String {
    let skipped = text.lines().skip(first - 1).take_while(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#')
    });
    let line = (first + skipped.count()).min(last);
    format!("{}, line {line}", path.display())
}

/// Hands out one line a call and counts them: dotenvy doesn't say where it was.
struct Lines<'a> {
    rest: &'a [u8],
    begun: Rc<Cell<usize>>,
}

impl Read for Lines<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let end = self
            .rest
            .iter()
            .position(|&byte| byte == b'\n')
            .map_or(self.rest.len(), |newline| newline + 1);
        let count = end.min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest[..count]);
        self.rest = &self.rest[count..];
        if count > 0 && count == end {
            self.begun.set(self.begun.get() + 1);
        }
        Ok(count)
    }
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
