//! The sources of values: flags, the environment, and a `.env` file.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;

use clap::{Arg, ArgAction};

use super::surprises;
use super::surroundings::{self, Surroundings};
use super::{Command, Config, ConfigError, Problem, Section, VARIABLES, Variable, dotenv};
use crate::secret;

/// What `--version` prints.
const VERSION: &str = concat!("livechat-ws ", env!("CARGO_PKG_VERSION"), "\n");

/// Reads the command line, the environment and the `.env` file, strongest first.
///
/// `args` begins with the program's name, as [`std::env::args_os`] does, and `env` is [`std::env::vars_os`]. The `.env`
/// file need not exist.
///
/// # Errors
///
/// A malformed command line, or every error in the values and in the lines of `.env`.
pub fn load(
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (impl Into<OsString>, impl Into<OsString>)>,
    file: Option<&Path>,
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
    let mut surroundings =
        Surroundings::read(env.into_iter().map(|(name, value)| (name.into(), value.into())));
    let mut problems = std::mem::take(&mut surroundings.problems);
    let mut warnings = std::mem::take(&mut surroundings.warnings);
    let file = file
        .map(|path| read_dotenv(path, &mut problems, &mut warnings))
        .unwrap_or_default();
    let lookup = |name: &str| {
        let flag = flags.try_get_one::<String>(name).ok().flatten();
        flag.or_else(|| surroundings.values.get(name))
            .or_else(|| file.get(name))
            .cloned()
    };
    let config = match Config::from_lookup(&lookup) {
        Ok(config) if problems.is_empty() => config,
        Ok(_) => return Err(ConfigError::Invalid(problems)),
        Err(ConfigError::Invalid(more)) => {
            problems.extend(more);
            return Err(ConfigError::Invalid(problems));
        }
        Err(error) => return Err(error),
    };
    warnings.extend(surprises::surprises(&config, &|name| {
        lookup(name).filter(|value| !value.is_empty())
    }));
    warnings.extend(surprises::empty_keys(&config, &|name| {
        lookup(name).is_some_and(|value| secret::without_line_break(&value).is_empty())
    }));
    let config = Box::new(Config { warnings, ..config });
    Ok(if flags.get_flag("check-config") {
        Command::CheckConfig(config)
    } else if flags.get_flag("healthcheck") {
        Command::Healthcheck(config)
    } else {
        Command::Serve(config)
    })
}

/// The command line, built from the table.
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
        // Also the variable's own spelling: --MAX_MESSAGE_BYTES=65536.
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

/// The values of a `.env` file. Refused lines, and variables with two values, are problems.
fn read_dotenv(
    path: &Path,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> HashMap<String, String> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return HashMap::new(),
        Err(error) => {
            problems.push(Problem {
                name: path.display().to_string(),
                value: None,
                accepted: format!("expected a readable text file: {error}"),
            });
            return HashMap::new();
        }
    };
    let file = dotenv::parse(&bytes);
    for broken in file.problems {
        let place = format!("{}, line {}", path.display(), broken.line);
        let is_somebody_elses = broken
            .name
            .as_deref()
            .is_some_and(|name| Variable::named(name).is_none());
        let name = broken
            .name
            .map_or(place.clone(), |name| format!("{name} ({place})"));
        if is_somebody_elses {
            warnings.push(format!(
                "{name} is not a variable of this server, and its line is ignored: {}",
                broken.why
            ));
        } else {
            problems.push(Problem {
                name,
                value: None,
                accepted: broken.why,
            });
        }
    }
    let mut seen: HashMap<String, (usize, String)> = HashMap::new();
    for entry in file.entries {
        if Variable::named(&entry.name).is_none() {
            warnings.extend(surroundings::unknown(&entry.name));
            continue;
        }
        if entry.has_reference {
            warnings.push(format!(
                "{} ({}, line {}) is taken as it is: a $ with a name after it is not substituted (single quotes silence this \
                 warning)",
                entry.name,
                path.display(),
                entry.line
            ));
        }
        match seen.get(&entry.name) {
            Some((first, value)) if *value != entry.value => problems.push(Problem {
                value: None,
                accepted: format!(
                    "it has one value on line {first} of {} and another on line {}: keep one of them",
                    path.display(),
                    entry.line
                ),
                name: entry.name,
            }),
            Some(_) => {}
            None => {
                seen.insert(entry.name, (entry.line, entry.value));
            }
        }
    }
    seen.into_iter().map(|(name, (_, value))| (name, value)).collect()
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
