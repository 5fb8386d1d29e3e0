//! What the configuration says about tokens and API keys.

use std::fmt;
use std::time::Duration;

use crate::secret::Secret;

/// Checked by `config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `JWT_SECRET`.
    pub secret: Option<Secret>,
    /// `JWT_PUBLIC_KEY`: one or more in PEM form.
    pub public_key: Option<Secret>,
    /// A key set; at most one.
    pub key_set: Option<KeySetSource>,
    /// `iss` must be this.
    pub issuer: Option<String>,
    /// `aud` must be or contain this.
    pub audience: Option<String>,
    /// How far clocks may differ.
    pub leeway: Duration,
    /// The names of our claims.
    pub claim_user: String,
    pub claim_role: String,
    pub claim_sessions: String,
    /// `API_KEYS`: separated by commas.
    pub api_keys: Option<Secret>,
    /// Refused tokens and API keys of one address; 0: no limit.
    pub failures_per_minute: u32,
}

/// Where a key set is.
#[derive(Clone, PartialEq, Eq)]
pub enum KeySetSource {
    /// The content of `JWKS_FILE`.
    File(Secret),
    /// `JWKS_URL`.
    Url(String),
}

/// A URL's query may hold a key.
impl fmt::Debug for KeySetSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(content) => f.debug_tuple("File").field(content).finish(),
            Self::Url(url) => {
                let end = url.find(['?', '#']).unwrap_or(url.len());
                f.debug_tuple("Url").field(&&url[..end]).finish()
            }
        }
    }
}

impl Settings {
    /// Whether tokens are asked for.
    pub fn are_tokens_on(&self) -> bool {
        self.secret.is_some() || self.public_key.is_some() || self.key_set.is_some()
    }

    /// `JWT_LEEWAY` as claims count.
    pub fn leeway_seconds(&self) -> i64 {
        i64::try_from(self.leeway.as_secs()).unwrap_or(i64::MAX / 2)
    }

    /// The content of `JWKS_FILE`.
    pub fn key_set_file(&self) -> Option<&Secret> {
        match &self.key_set {
            Some(KeySetSource::File(content)) => Some(content),
            _ => None,
        }
    }

    /// `JWKS_URL`.
    pub fn key_set_url(&self) -> Option<&str> {
        match &self.key_set {
            Some(KeySetSource::Url(url)) => Some(url),
            _ => None,
        }
    }

    /// The secrets that may change while the server runs.
    pub fn secrets(&self) -> impl Iterator<Item = Secret> {
        [
            self.secret.clone(),
            self.public_key.clone(),
            self.key_set_file().cloned(),
            self.api_keys.clone(),
        ]
        .into_iter()
        .flatten()
    }
}

impl Default for Settings {
    /// Off, as without any variable.
    fn default() -> Self {
        Self {
            secret: None,
            public_key: None,
            key_set: None,
            issuer: None,
            audience: None,
            leeway: Duration::from_secs(30),
            claim_user: "sub".to_owned(),
            claim_role: "role".to_owned(),
            claim_sessions: "sessions".to_owned(),
            api_keys: None,
            failures_per_minute: 30,
        }
    }
}
