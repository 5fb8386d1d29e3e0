//! The keys of backends (`API_KEYS`).

use parking_lot::Mutex;
use ring::{digest, hmac, rand};

use super::keys::{MIN_DIFFERENT_BYTES, different_bytes, is_public};
use crate::secret::Secret;

/// A shorter key could be guessed.
const MIN_BYTES: usize = 16;
/// The most that are compared for a request.
const MAX_KEYS: usize = 100;

/// The keys of a comma-separated list.
fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', '\n'])
        .map(str::trim)
        .filter(|key| !key.is_empty())
}

/// Checks `API_KEYS`.
///
/// # Errors
///
/// What is expected.
pub fn check_api_keys(text: &str) -> Result<(), String> {
    if is_public(text.as_bytes()) {
        return Err(
            "this is a public key or a key set, which others may have: expected random keys".to_owned(),
        );
    }
    let count = list(text).count();
    if count == 0 || count > MAX_KEYS {
        return Err(format!("expected 1 to {MAX_KEYS} keys, separated by commas"));
    }
    for (number, key) in list(text).enumerate() {
        let is_visible = key.bytes().all(|byte| byte.is_ascii_graphic());
        if key.len() >= MIN_BYTES && different_bytes(key.as_bytes()) < MIN_DIFFERENT_BYTES {
            let number = number + 1;
            return Err(format!(
                "expected random keys; key {number} repeats a few characters"
            ));
        }
        if key.len() < MIN_BYTES || !is_visible {
            let number = number + 1;
            return Err(format!(
                "expected keys of at least {MIN_BYTES} visible ASCII characters; key {number} is not one"
            ));
        }
    }
    Ok(())
}

/// The configured keys, as tags under a key drawn at start: comparing tags takes the same time whatever the keys are.
pub(super) struct ApiKeys {
    secret: Option<Secret>,
    tagging: hmac::Key,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    version: Option<u64>,
    tags: Vec<hmac::Tag>,
}

impl ApiKeys {
    pub(super) fn new(secret: Option<Secret>) -> Self {
        // Without randomness the tags are those of a public hash, which reveals as little.
        let tagging = hmac::Key::generate(hmac::HMAC_SHA256, &rand::SystemRandom::new());
        let keys = Self {
            secret,
            tagging: tagging
                .unwrap_or_else(|_| hmac::Key::new(hmac::HMAC_SHA256, &[0; digest::SHA256_OUTPUT_LEN])),
            current: Mutex::default(),
        };
        keys.reload();
        keys
    }

    /// Whether any is set.
    pub(super) fn are_set(&self) -> bool {
        self.secret.is_some()
    }

    /// Takes over what has changed in the file.
    pub(super) fn reload(&self) {
        let Some(secret) = &self.secret else { return };
        let version = secret.version();
        let mut current = self.current.lock();
        if current.version == Some(version) {
            return;
        }
        current.version = Some(version);
        let text = secret.value();
        match check_api_keys(&text) {
            Ok(()) => {
                let tags = list(&text).map(|key| hmac::sign(&self.tagging, key.as_bytes()));
                current.tags = tags.collect();
            }
            Err(error) => {
                tracing::warn!(
                    variable = "API_KEYS_FILE",
                    error,
                    "changed keys can't be used: the old ones stay"
                );
            }
        }
    }

    /// Whether this is one of the keys. All are compared.
    pub(super) fn have(&self, key: &[u8]) -> bool {
        let tags = self.current.lock();
        let found = tags
            .tags
            .iter()
            .filter(|tag| hmac::verify(&self.tagging, key, tag.as_ref()).is_ok());
        found.count() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str = "first-0123456789, second-0123456789,";

    #[test]
    fn each_key_of_the_list_is_known_and_nothing_else() {
        let keys = ApiKeys::new(Some(Secret::fixed(KEYS.to_owned())));
        assert!(keys.are_set());
        for key in ["first-0123456789", "second-0123456789"] {
            assert!(keys.have(key.as_bytes()), "{key}");
            assert!(!keys.have(&key.as_bytes()[1..]), "{key}");
            assert!(!keys.have(format!("{key}x").as_bytes()), "{key}");
        }
        assert!(!keys.have(b"") && !keys.have(KEYS.as_bytes()));
        assert!(!ApiKeys::new(None).have(b"") && !ApiKeys::new(None).are_set());
    }

    #[test]
    fn short_and_invisible_keys_are_refused_without_showing_them() {
        for bad in [
            "",
            ",",
            "hunter2",
            "hunter2-hunter2 x",
            "hunter2-hunter2-é",
            &format!("{KEYS}hunter2"),
        ] {
            let error = check_api_keys(bad).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
        for (bad, word) in [
            ("hunter2-hunter2-1,aaaaaaaaaaaaaaaa", "key 2 repeats"),
            (
                "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA
-----END PUBLIC KEY-----",
                "public key",
            ),
            (
                r#"{"keys":[{"kty":"RSA","kid":"hunter2-hunter2","n":"hunter2-hunter2-hunter2"}]}"#,
                "key set",
            ),
        ] {
            let error = check_api_keys(bad).unwrap_err();
            assert!(error.contains(word) && !error.contains("hunter2"), "{error}");
        }
        assert_eq!(check_api_keys("hunter2-hunter2-"), Ok(()));
        assert_eq!(check_api_keys(KEYS), Ok(()));
    }
}
