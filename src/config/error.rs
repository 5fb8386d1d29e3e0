//! The errors of a configuration, all reported at once, so that they can be fixed in one go.

use std::fmt;

/// One error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The variable's name, or the place in a file.
    pub name: String,
    /// The value as given. None: there was none, or it is a secret.
    pub value: Option<String>,
    /// What is accepted.
    pub accepted: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value:?}: {}", self.name, self.accepted),
            None => write!(f, "{}: {}", self.name, self.accepted),
        }
    }
}

/// Why the configuration could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The command line is wrong, for example an unknown flag.
    #[error("{0}")]
    Usage(String),
    /// Every value that is wrong.
    #[error("the configuration is not valid{}", list(.0))]
    Invalid(Vec<Problem>),
}

impl ConfigError {
    /// The names of the variables that are wrong.
    pub fn names(&self) -> Vec<&str> {
        match self {
            ConfigError::Usage(_) => Vec::new(),
            ConfigError::Invalid(problems) => problems.iter().map(|problem| problem.name.as_str()).collect(),
        }
    }
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}
