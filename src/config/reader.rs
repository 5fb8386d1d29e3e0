//! Reads single variables: by their names, with their defaults, and with a note of what was wrong.

use std::path::Path;
use std::time::Duration;

use super::parse::{self, duration};
use super::{Problem, Variable};
use crate::secret::{self, Secret};

/// Reads variables and remembers what was wrong with them.
pub(super) struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            lookup,
            problems: Vec::new(),
        }
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// The value. None: unset. Some(""): set to nothing.
    pub(super) fn given(&self, name: &str) -> Option<String> {
        let value = (self.lookup)(name)?;
        let is_free_text = Variable::named(name).is_some_and(Variable::is_free_text);
        // A password, a user or a path may begin or end with a blank, which no number, name or list does. A line break at
        // its end is the editor's that wrote it.
        let trimmed = if is_free_text {
            secret::without_line_break(&value)
        } else {
            value.trim()
        };
        Some(trimmed.to_owned())
    }

    /// The value, if there is one that is not empty.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.given(name).filter(|value| !value.is_empty())
    }

    /// Notes that the variable is wrong.
    pub(super) fn wrong(&mut self, name: &str, accepted: impl Into<String>) {
        let value = self.text(name).and_then(|value| shown(name, &value));
        self.problems.push(Problem {
            name: name.to_owned(),
            value,
            accepted: accepted.into(),
        });
    }

    pub(super) fn is_wrong(&self, name: &str) -> bool {
        self.problems.iter().any(|problem| problem.name == name)
    }

    /// The parsed value; None where it is unset or wrong.
    pub(super) fn optional<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match parse(&self.text(name)?) {
            Ok(value) => Some(value),
            Err(accepted) => {
                self.wrong(name, accepted);
                None
            }
        }
    }

    /// The parsed value, or the parsed default of the table where it is unset or wrong.
    pub(super) fn required<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let default = Variable::named(name).map_or("", |variable| variable.default);
        match self.optional(name, &parse) {
            Some(value) => value,
            None => {
                parse(default).unwrap_or_else(|why| unreachable!("the default of {name} is wrong: {why}"))
            }
        }
    }

    /// As `required`, but set to nothing means none.
    pub(super) fn unless_empty<T>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        if self.given(name).is_some_and(|value| value.is_empty()) {
            None
        } else {
            Some(self.required(name, parse))
        }
    }

    /// A secret: the variable's own value, or the content of the file that its `_FILE` variable names.
    pub(super) fn secret(&mut self, name: &'static str, file: &'static str) -> Option<Secret> {
        match (self.text(name), self.text(file)) {
            (Some(_), Some(_)) => {
                self.wrong(file, format!("{name} is set, too: expected only one of them"));
                None
            }
            (Some(value), None) => Some(Secret::fixed(value)),
            (None, Some(_)) => self.optional(file, |path| Secret::from_file(file, Path::new(path))),
            (None, None) => None,
        }
    }

    pub(super) fn duration(&mut self, name: &str, from: Duration, to: Duration) -> Duration {
        self.required(name, |text| duration(text, from..=to))
    }
}

/// What an error may show of a value.
fn shown(name: &str, value: &str) -> Option<String> {
    if Variable::named(name).is_some_and(|variable| variable.secret) {
        return None;
    }
    // A password in the place of its file's path is no path of this machine, whatever slashes it has.
    if name.ends_with("_PASSWORD_FILE") && !is_path_here(Path::new(value)) {
        return None;
    }
    // Further lines may be another variable's.
    let line = value.lines().next().unwrap_or_default();
    Some(parse::without_user(line))
}

/// Whether a path or its folder is there. Every machine has `/`, and every process its own folder: they say nothing.
fn is_path_here(path: &Path) -> bool {
    let folder = path.parent().filter(|folder| folder.file_name().is_some());
    path.exists() || folder.is_some_and(Path::is_dir)
}
