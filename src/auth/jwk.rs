//! Key sets (RFC 7517, section 5).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde_json::Value;

use super::keys::Key;

/// A longer set is refused.
const MAX_KEYS: usize = 100;

/// Whether a set may hold shared secrets: one that anybody can fetch may not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrets {
    Allowed,
    Refused,
}

/// Checks the content of `JWKS_FILE`.
///
/// # Errors
///
/// What is expected.
pub fn check_set(text: &str) -> Result<(), String> {
    let set = of_set(text, Secrets::Allowed)?;
    if set.keys.is_empty() {
        let given = set.left_out;
        return Err(format!(
            "expected a key that can verify tokens; none of the {given} can"
        ));
    }
    Ok(())
}

/// The keys of a set that can verify tokens; none, where an issuer has revoked them all.
pub(super) struct Set {
    pub(super) keys: Vec<Key>,
    /// How many others it has.
    pub(super) left_out: usize,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    k: Option<String>,
}

/// Reads a set; unusable keys are left out, as RFC 7517 asks for.
pub(super) fn of_set(text: &str, secrets: Secrets) -> Result<Set, String> {
    // The parser's own error would quote the text, which may be a secret.
    let document: Document =
        serde_json::from_str(text).map_err(|_| "expected a JSON Web Key Set, {\"keys\":[…]}")?;
    let given = document.keys.len();
    if given > MAX_KEYS {
        return Err(format!("expected at most {MAX_KEYS} keys; there are {given}"));
    }
    let keys: Vec<Key> = document
        .keys
        .into_iter()
        .filter_map(|key| of_jwk(serde_json::from_value(key).ok()?, secrets))
        .collect();
    let left_out = given - keys.len();
    Ok(Set { keys, left_out })
}

fn of_jwk(jwk: Jwk, secrets: Secrets) -> Option<Key> {
    let verifies = jwk.usage.is_none_or(|usage| usage == "sig")
        && jwk.key_ops.is_none_or(|ops| ops.iter().any(|op| op == "verify"));
    if !verifies {
        return None;
    }
    let bytes = |text: Option<String>| URL_SAFE_NO_PAD.decode(text?).ok();
    let point = |x: Option<String>, y: Option<String>| Some([vec![4], bytes(x)?, bytes(y)?].concat());
    let key = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => Key::rsa(&bytes(jwk.n)?, &bytes(jwk.e)?),
        ("EC", Some("P-256")) => Key::p256(&point(jwk.x, jwk.y)?),
        ("EC", Some("P-384")) => Key::p384(&point(jwk.x, jwk.y)?),
        ("OKP", Some("Ed25519")) => Key::ed25519(&bytes(jwk.x)?),
        ("oct", _) if secrets == Secrets::Allowed => Key::secret(&bytes(jwk.k)?),
        _ => return None,
    };
    let mut key = key.ok()?.with_id(jwk.kid);
    match jwk.alg.map(|alg| alg.parse::<Algorithm>()) {
        None => Some(key),
        Some(Ok(algorithm)) => key.limit_to(algorithm).then_some(key),
        Some(Err(_)) => None,
    }
}
