//! The keys that verify tokens at the moment: the configured ones, and a set that may change at any time.

use std::sync::Arc;

use jsonwebtoken::Algorithm;
use parking_lot::{Mutex, RwLock};

use super::jwk::{self, Secrets};
use super::keys::{self, Key, MAX_CANDIDATES};
use super::settings::Settings;
use crate::secret::Secret;

/// All keys at one moment.
#[derive(Default, Clone)]
pub(super) struct Keys {
    /// `JWT_SECRET`.
    secret: Vec<Arc<Key>>,
    /// `JWT_PUBLIC_KEY`.
    public: Vec<Arc<Key>>,
    /// `None`: there is a set, and it has never been fetched.
    set: Option<Vec<Arc<Key>>>,
}

/// The keys to try for a token.
pub(super) struct Candidates {
    pub(super) keys: Vec<Arc<Key>>,
    /// The token names a key that the set does not have.
    pub(super) is_unknown: bool,
}

impl Keys {
    /// The keys for a token of this algorithm. One with a `kid` is verified by the set's key of exactly that name; if
    /// there is none, or without a `kid`, by any key that has the algorithm, of which at most [`MAX_CANDIDATES`] are
    /// tried.
    pub(super) fn for_token(&self, id: Option<&str>, algorithm: Algorithm) -> Candidates {
        let set = self.set.as_deref().unwrap_or_default();
        let mut named = set
            .iter()
            .filter(|key| id.is_some() && key.id.as_deref() == id)
            .peekable();
        if named.peek().is_some() {
            let named = named.filter(|key| key.allows(algorithm)).take(MAX_CANDIDATES);
            return Candidates {
                keys: named.cloned().collect(),
                is_unknown: false,
            };
        }
        let unnamed = set.iter().filter(|_| id.is_none());
        let all = self.secret.iter().chain(&self.public).chain(unnamed);
        let fitting = all.filter(|key| key.allows(algorithm)).take(MAX_CANDIDATES);
        Candidates {
            keys: fitting.cloned().collect(),
            is_unknown: id.is_some(),
        }
    }

    /// Whether a token may take long to verify.
    pub(super) fn are_slow(&self) -> bool {
        let set = self.set.iter().flatten();
        self.public.iter().chain(set).any(|key| key.is_slow)
    }

    /// Whether no set has ever been fetched.
    pub(super) fn lack_set(&self) -> bool {
        self.set.is_none()
    }
}

/// The part of the keys that a file replaces.
#[derive(Clone, Copy)]
enum Part {
    Secret,
    Public,
    Set,
}

/// A value that may change, with the version that was read.
struct Source {
    variable: &'static str,
    part: Part,
    value: Secret,
    version: Option<u64>,
}

pub(super) struct KeyStore {
    current: RwLock<Arc<Keys>>,
    sources: Mutex<Vec<Source>>,
}

impl KeyStore {
    pub(super) fn new(settings: &Settings) -> Self {
        let sources = [
            ("JWT_SECRET", Part::Secret, settings.secret.clone()),
            ("JWT_PUBLIC_KEY", Part::Public, settings.public_key.clone()),
            ("JWKS_FILE", Part::Set, settings.key_set_file().cloned()),
        ];
        let sources = sources.into_iter().filter_map(|(variable, part, value)| {
            Some(Source {
                variable,
                part,
                value: value?,
                version: None,
            })
        });
        let store = Self {
            current: RwLock::new(Arc::new(Keys {
                set: settings.key_set_url().is_none().then(Vec::new),
                ..Keys::default()
            })),
            sources: Mutex::new(sources.collect()),
        };
        store.reload();
        store
    }

    pub(super) fn current(&self) -> Arc<Keys> {
        Arc::clone(&self.current.read())
    }

    /// Takes over what has changed in files. What can't be used changes nothing.
    pub(super) fn reload(&self) {
        for source in self.sources.lock().iter_mut() {
            let version = Some(source.value.version());
            if source.version == version {
                continue;
            }
            source.version = version;
            let text = source.value.value();
            let read = match source.part {
                Part::Secret => keys::of_secret(&text).map(|key| vec![key]),
                Part::Public => keys::of_pem(&text),
                Part::Set => jwk::of_set(&text, Secrets::Allowed).map(|set| {
                    log_set(&set);
                    set.keys
                }),
            };
            match read {
                Ok(keys) => self.replace(source.part, keys),
                Err(error) => {
                    let variable = source.variable;
                    tracing::warn!(variable, error, "changed keys can't be used: the old ones stay");
                }
            }
        }
    }

    /// Takes over a set that was fetched. Returns the names of keys that have gone from it.
    pub(super) fn replace_set(&self, text: &str) -> Result<Vec<Option<String>>, String> {
        let set = jwk::of_set(text, Secrets::Refused)?;
        let ids = |keys: &[Arc<Key>]| keys.iter().map(|key| key.id.clone()).collect::<Vec<_>>();
        let before = self.current().set.as_deref().map(ids);
        let now: Vec<_> = set.keys.iter().map(|key| key.id.clone()).collect();
        if before.as_ref() != Some(&now) {
            log_set(&set);
        }
        self.replace(Part::Set, set.keys);
        let mut removed = before.unwrap_or_default();
        removed.retain(|id| !now.contains(id));
        Ok(removed)
    }

    fn replace(&self, part: Part, keys: Vec<Key>) {
        let keys = keys.into_iter().map(Arc::new).collect();
        let mut current = self.current.write();
        let all = Arc::make_mut(&mut current);
        match part {
            Part::Secret => all.secret = keys,
            Part::Public => all.public = keys,
            Part::Set => all.set = Some(keys),
        }
    }
}

fn log_set(set: &jwk::Set) {
    if set.keys.is_empty() {
        tracing::warn!(
            left_out = set.left_out,
            "the key set has no key that can verify tokens: no token is accepted by it any more"
        );
        return;
    }
    tracing::info!(
        keys = set.keys.len(),
        left_out = set.left_out,
        "a key set is in use"
    );
}
