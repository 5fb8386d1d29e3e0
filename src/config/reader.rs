//! Reads single variables by name, with their defaults, and collects the errors.

use std::path::Path;
use std::time::Duration;

use super::parse::{self, duration};
use super::{Problem, Variable};
use crate::secret::{self, Secret};

/// Reads variables and collects what is wrong with them.
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

    /// The value. None: unset. Some(""): set, but empty.
    pub(super) fn given(&self, name: &str) -> Option<String> {
        let value = (self.lookup)(name)?;
        let is_free_text = Variable::named(name).is_some_and(Variable::is_free_text);
        // A password, a user or a path may begin or end with a blank; a number, name or list may not. A final line
        // break comes from an editor.
        let trimmed = if is_free_text {
            secret::without_line_break(&value)
        } else {
            value.trim()
        };
        Some(trimmed.to_owned())
    }

    /// The value, unless it is unset or empty.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.given(name).filter(|value| !value.is_empty())
    }

    /// Records that the variable is wrong.
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

    /// The parsed value; None if it is unset or wrong.
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

    /// The parsed value, or the parsed default from the table if it is unset or wrong.
    pub(super) fn required<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let default = Variable::named(name).map_or("", |variable| variable.default);
        match self.optional(name, &parse) {
            Some(value) => value,
            None => {
                parse(default).unwrap_or_else(|why| unreachable!("the default of {name} is wrong: {why}"))
            }
        }
    }

    /// As `required`, but an empty value means none.
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

    /// A secret: the variable's own value, or the content of the file named by its `_FILE` variable.
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

/// The part of a value that an error may show.
fn shown(name: &str, value: &str) -> Option<String> {
    if Variable::named(name).is_some_and(|variable| variable.secret) {
        return None;
    }
    // A secret given instead of its file's path does not exist on this machine, whatever slashes it has.
    let of = name.strip_suffix("_FILE").and_then(Variable::named);
    if of.is_some_and(|variable| variable.secret) && !is_path_here(Path::new(value)) {
        return None;
    }
    // Further lines may belong to another variable.
    let line = value.lines().next().unwrap_or_default();
    // A query may hold a key as well as a user's part does.
    let shown = parse::without_user(line);
    if !name.ends_with("_URL") {
        return Some(shown);
    }
    let end = shown.find(['?', '#']).unwrap_or(shown.len());
    Some(shown[..end].to_owned())
}

/// Whether a path or its folder exists. `/` and the working directory always do, so they prove nothing.
fn is_path_here(path: &Path) -> bool {
    let folder = path.parent().filter(|folder| folder.file_name().is_some());
    path.exists() || folder.is_some_and(Path::is_dir)
}
