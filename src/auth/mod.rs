//! Who may speak: tokens, API keys, and what each may do.
//!
//! ```text
//! config ─► Settings ─► Auth ◄── a token or an API key (http, chat)
//!                         │
//!   key_store: the keys of the moment ◄── files (secret), key sets that `http` fetches (refresh)
//!                         │
//!   crypto: signature ─► claims: times, issuer, audience ─► Principal ─► rights: the table
//! ```
//!
//! Nothing here sees a socket, and nothing is done per message: a token is verified when it is presented, and the sweep
//! of connections ends those whose token has ended.

mod api_keys;
mod claims;
mod crypto;
mod der;
mod failures;
mod jwk;
mod key_store;
mod keys;
mod pem;
mod refresh;
pub mod rights;
mod settings;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

pub use api_keys::check_api_keys;
pub use jwk::check_set;
pub use keys::{check_pem, check_secret};
pub use rights::{Action, Denied, Principal, Sessions, Who};
pub use settings::{KeySetSource, Settings};

use tokio::sync::Semaphore;

use crate::clock::{self, Moment};
use crate::protocol::ids::SessionId;
use api_keys::ApiKeys;
use claims::Claims;
use failures::Failures;
use key_store::KeyStore;
use keys::Key;
use refresh::{Refresh, Waited};

/// A longer token is refused unread.
pub const MAX_TOKEN: usize = 8 * 1024;

/// How long a token of an address of which many were refused waits to be verified, where that may take long.
const PLACE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Invalid,
    /// It was valid.
    Expired,
    /// The key set has never been fetched: nothing is known about the token.
    NoKeys,
    /// It names a key for which the set has yet to be fetched, which may happen after this time.
    KeyPending(Duration),
    /// Too many tokens from addresses of which many were refused are to be verified.
    Busy,
}

/// What is known about a token at once.
enum Verdict {
    Final(Result<Principal, Refusal>),
    /// It names a key that the set does not have; this, unless the set has it by now.
    UnknownKey {
        id: Option<String>,
        refusal: Refusal,
    },
}

/// Verifies tokens and API keys, and decides by the table.
pub struct Auth {
    settings: Settings,
    is_production: bool,
    keys: KeyStore,
    refresh: Refresh,
    api_keys: ApiKeys,
    failures: Failures,
    /// The place of who verifies a token that may take long and may well be wrong.
    suspects: Arc<Semaphore>,
}

impl Auth {
    pub fn new(settings: Settings, is_production: bool) -> Self {
        crypto::install();
        Self {
            keys: KeyStore::new(&settings),
            refresh: Refresh::default(),
            api_keys: ApiKeys::new(settings.api_keys.clone()),
            failures: Failures::new(settings.failures_per_minute),
            suspects: Arc::new(Semaphore::new(1)),
            is_production,
            settings,
        }
    }

    /// Whether tokens are asked for.
    pub fn is_on(&self) -> bool {
        self.settings.are_tokens_on()
    }

    /// Whether any API key is set.
    pub fn has_api_keys(&self) -> bool {
        self.api_keys.are_set()
    }

    /// `JWT_LEEWAY` in seconds.
    pub fn leeway(&self) -> i64 {
        self.settings.leeway_seconds()
    }

    /// Who asks without token and key.
    pub fn anonymous(&self) -> Who {
        match (self.is_on(), self.is_production) {
            (true, _) => Who::Nobody,
            (false, true) => Who::AnyoneInProduction,
            (false, false) => Who::Anyone,
        }
    }

    /// Whoever bears this token. If it names a key that is not known, the key set may be fetched first. `address`: where
    /// it comes from, as [`address::counted`](crate::address::counted) returns it.
    pub async fn verify(self: &Arc<Self>, token: &str, address: IpAddr) -> Result<Principal, Refusal> {
        match self.judge_from(token, address).await? {
            Verdict::Final(result) => result,
            Verdict::UnknownKey { id, refusal } => match (self.refresh.wait(id.as_deref()).await, refusal) {
                (Waited::Fetched, _) => match self.judge_from(token, address).await? {
                    Verdict::Final(result) => result,
                    Verdict::UnknownKey { refusal, .. } => Err(refusal),
                },
                (Waited::Later(after), Refusal::Invalid) => Err(Refusal::KeyPending(after)),
                (Waited::Later(_) | Waited::Absent, refusal) => Err(refusal),
            },
        }
    }

    /// As [`Self::verify`], without waiting; `None` if it would have to.
    pub fn verify_now(&self, token: &str, address: IpAddr) -> Option<Result<Principal, Refusal>> {
        if self.takes_turns(token, address) {
            return None;
        }
        match self.judge(token) {
            Verdict::Final(result) => Some(result),
            Verdict::UnknownKey { .. } => None,
        }
    }

    /// Whether a token may take long to verify, and may well be wrong. It is not refused for its address. But such tokens
    /// are verified one at a time and beside the runtime, so that a flood of wrong ones does not hold up everybody.
    fn takes_turns(&self, token: &str, address: IpAddr) -> bool {
        let is_slow = token.len() <= MAX_TOKEN && self.keys.current().are_slow();
        is_slow && self.failures.are_too_many(address, Moment::now())
    }

    /// As [`Self::judge`], in turn if it has to be.
    async fn judge_from(self: &Arc<Self>, token: &str, address: IpAddr) -> Result<Verdict, Refusal> {
        if !self.takes_turns(token, address) {
            return Ok(self.judge(token));
        }
        let place = Arc::clone(&self.suspects).acquire_owned();
        let Ok(Ok(place)) = tokio::time::timeout(PLACE_TIMEOUT, place).await else {
            return Err(Refusal::Busy);
        };
        let (auth, token) = (Arc::clone(self), token.to_owned());
        let judged = tokio::task::spawn_blocking(move || {
            let _place = place;
            auth.judge(&token)
        });
        judged.await.map_err(|_| Refusal::Busy)
    }

    fn judge(&self, token: &str) -> Verdict {
        let invalid = Verdict::Final(Err(Refusal::Invalid));
        if token.len() > MAX_TOKEN {
            return invalid;
        }
        // As the library's `decode`, which would read the header and the claims twice.
        let Ok(header) = jsonwebtoken::decode_header(token) else {
            return invalid;
        };
        // Nothing of what these ask for is understood.
        if header.crit.is_some() || header.extras.inner().contains_key("b64") {
            return invalid;
        }
        let parts = token.rsplit_once('.');
        let Some((message, signature, claims)) =
            parts.and_then(|(message, signature)| Some((message, signature, message.split_once('.')?.1)))
        else {
            return invalid;
        };
        let keys = self.keys.current();
        let candidates = keys.for_token(header.kid.as_deref(), header.alg);
        let has_signed = |key: &Arc<Key>| key.has_signed(message, signature, header.alg);
        if candidates.keys.iter().any(has_signed) {
            let now = clock::unix_seconds();
            let principal = Claims::decode(claims).and_then(|claims| claims.principal(&self.settings, now));
            return Verdict::Final(principal);
        }
        let refusal = if keys.lack_set() {
            Refusal::NoKeys
        } else {
            Refusal::Invalid
        };
        let is_fetched = self.key_set_url().is_some();
        if is_fetched && (candidates.is_unknown || keys.lack_set()) {
            Verdict::UnknownKey {
                id: header.kid,
                refusal,
            }
        } else {
            Verdict::Final(Err(refusal))
        }
    }

    /// Whether this is a backend's key.
    pub fn is_api_key(&self, key: &[u8]) -> bool {
        self.api_keys.have(key)
    }

    /// Decides by the table of [`rights`].
    ///
    /// # Errors
    ///
    /// Why it is denied.
    pub fn decide(&self, who: &Who, action: Action, session_id: Option<&SessionId>) -> Result<(), Denied> {
        rights::decide(who, action, session_id, self.has_api_keys())
    }

    /// Counts a refused token or API key of an address, as [`address::counted`](crate::address::counted) returns it.
    /// If there are too many, how long to wait.
    pub fn count_failure(&self, address: IpAddr) -> Option<Duration> {
        self.failures.count(address, Moment::now())
    }

    /// Periodic work: takes over keys that have changed in their files, and forgets old failures.
    pub fn tick(&self) {
        self.keys.reload();
        self.api_keys.reload();
        self.failures.purge(Moment::now());
    }

    /// Where the key set must be fetched from, if it must.
    pub fn key_set_url(&self) -> Option<&str> {
        self.settings.key_set_url()
    }

    /// Whether a key set has yet to be fetched for the first time.
    pub fn lacks_key_set(&self) -> bool {
        self.keys.current().lack_set()
    }

    /// A fetch of the key set begins; [`Self::key_set_fetched`] or [`Self::key_set_failed`] follows.
    pub fn key_set_requested(&self) {
        self.refresh.begin();
    }

    /// The key set was fetched. If it can't be used, the old keys stay.
    ///
    /// # Errors
    ///
    /// Why it can't be used.
    pub fn key_set_fetched(&self, text: &str) -> Result<(), String> {
        match self.keys.replace_set(text) {
            Ok(removed) => {
                self.refresh.succeeded(removed.into_iter());
                Ok(())
            }
            Err(error) => {
                self.refresh.failed();
                Err(error)
            }
        }
    }

    /// The key set could not be fetched: the old keys stay.
    pub fn key_set_failed(&self) {
        self.refresh.failed();
    }

    /// Waits until the key set is to be fetched again.
    pub async fn key_set_due(&self, has_failed: bool) {
        self.refresh.next(has_failed).await;
    }
}

#[cfg(test)]
mod key_tests;
#[cfg(test)]
mod token_tests;
#[cfg(test)]
#[path = "../../tests/e2e/support/tokens.rs"]
mod tokens;
