//! Keys that verify tokens. A key fixes its algorithms when it is read: what a token says only picks among them.

use std::collections::HashSet;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, crypto};

use super::{der, pem};

/// A shorter secret could be guessed offline from one token.
const MIN_SECRET_BYTES: usize = 32;
/// A secret or API key with fewer different bytes is a placeholder.
pub(super) const MIN_DIFFERENT_BYTES: usize = 5;
/// RSA keys outside of these sizes are refused by ring; in bytes of the modulus.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;
/// Up to here, RSA is verified as fast as P-256 is; in bytes of the modulus.
const FAST_RSA_BYTES: usize = 384;
/// How many keys are tried for a token that names none.
pub(super) const MAX_CANDIDATES: usize = 4;

const HMAC: &[Algorithm] = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// One key with its algorithms.
pub(super) struct Key {
    /// `kid` of a key set's key.
    pub(super) id: Option<String>,
    decoding: DecodingKey,
    algorithms: Vec<Algorithm>,
    /// A verification takes some milliseconds of a core, or a good part of one; others take at most a tenth of that.
    pub(super) is_slow: bool,
}

impl Key {
    fn new(decoding: DecodingKey, algorithms: &[Algorithm]) -> Self {
        Self {
            id: None,
            decoding,
            algorithms: algorithms.to_vec(),
            is_slow: false,
        }
    }

    /// Whether this is its signature of a message, by an algorithm that it has; `signature` is still encoded.
    pub(super) fn has_signed(&self, message: &str, signature: &str, algorithm: Algorithm) -> bool {
        self.allows(algorithm)
            && crypto::verify(signature, message.as_bytes(), &self.decoding, algorithm)
                .is_ok_and(|is_valid| is_valid)
    }

    /// A shared secret: HS256, HS384, HS512.
    pub(super) fn secret(secret: &[u8]) -> Result<Self, String> {
        let short = || {
            let is = secret.len();
            format!("expected a secret of at least {MIN_SECRET_BYTES} bytes; it has {is}")
        };
        if is_public(secret) {
            return Err(PUBLIC.to_owned());
        }
        if secret.len() < MIN_SECRET_BYTES {
            return Err(short());
        }
        if different_bytes(secret) < MIN_DIFFERENT_BYTES {
            return Err("expected a random secret; this one repeats a few bytes".to_owned());
        }
        let decoding = DecodingKey::from_secret(secret).map_err(|_| short())?;
        Ok(Self::new(decoding, HMAC))
    }

    /// An RSA key of the usual sizes: RS and PS.
    pub(super) fn rsa(n: &[u8], e: &[u8]) -> Result<Self, String> {
        // Signed integers begin with a zero, which ring does not expect.
        let [n, e] = [n, e].map(|integer| &integer[integer.iter().take_while(|&&byte| byte == 0).count()..]);
        if !RSA_BYTES.contains(&n.len()) {
            let bits = n.len() * 8;
            return Err(format!("expected an RSA key of 2048 to 8192 bits; it has {bits}"));
        }
        Ok(Self {
            is_slow: n.len() > FAST_RSA_BYTES,
            ..Self::new(DecodingKey::from_rsa_raw_components(n, e), RSA)
        })
    }

    /// A point of P-256: ES256.
    pub(super) fn p256(point: &[u8]) -> Result<Self, String> {
        Self::point(point, 65, DecodingKey::from_ec_der, Algorithm::ES256)
    }

    /// A point of P-384: ES384.
    pub(super) fn p384(point: &[u8]) -> Result<Self, String> {
        // ring has no fast arithmetic for this curve.
        Ok(Self {
            is_slow: true,
            ..Self::point(point, 97, DecodingKey::from_ec_der, Algorithm::ES384)?
        })
    }

    /// An Ed25519 key: EdDSA.
    pub(super) fn ed25519(bytes: &[u8]) -> Result<Self, String> {
        Self::point(bytes, 32, DecodingKey::from_ed_der, Algorithm::EdDSA)
    }

    fn point(
        bytes: &[u8],
        length: usize,
        decoding: fn(&[u8]) -> DecodingKey,
        algorithm: Algorithm,
    ) -> Result<Self, String> {
        // Points of the two curves are given uncompressed.
        let is_whole = bytes.len() == length && (length == 32 || bytes[0] == 4);
        if is_whole {
            Ok(Self::new(decoding(bytes), &[algorithm]))
        } else {
            Err("the key has a wrong length".to_owned())
        }
    }

    pub(super) fn with_id(self, id: Option<String>) -> Self {
        Self { id, ..self }
    }

    /// Limits the key to one of its algorithms; false if it is none of them.
    pub(super) fn limit_to(&mut self, algorithm: Algorithm) -> bool {
        let is_one = self.allows(algorithm);
        self.algorithms = vec![algorithm];
        is_one
    }

    pub(super) fn allows(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", self.algorithms)
    }
}

/// The public keys of a PEM text.
pub(super) fn of_pem(text: &str) -> Result<Vec<Key>, String> {
    let keys = pem::blocks(text)?.into_iter().map(|(label, bytes)| match label {
        "PUBLIC KEY" => of_spki(&bytes),
        "RSA PUBLIC KEY" => of_rsa_der(&bytes),
        label if label.contains("PRIVATE") => {
            Err("this is a private key, which stays with the issuer: expected its public key".to_owned())
        }
        _ => Err("expected -----BEGIN PUBLIC KEY-----".to_owned()),
    });
    let keys = keys.collect::<Result<Vec<_>, _>>()?;
    match keys.len() {
        0 => Err("expected a public key in PEM form, -----BEGIN PUBLIC KEY-----".to_owned()),
        1..=MAX_CANDIDATES => Ok(keys),
        _ => Err(format!("expected at most {MAX_CANDIDATES} keys")),
    }
}

/// A SubjectPublicKeyInfo (RFC 5280, section 4.1; RFC 5480; RFC 8410).
fn of_spki(bytes: &[u8]) -> Result<Key, String> {
    const UNSUPPORTED: &str = "expected an RSA key, or one on P-256, P-384 or Ed25519";
    let (algorithm, key) = der::public_key_info(bytes).ok_or("the key can't be read")?;
    match algorithm {
        der::RSA => of_rsa_der(key),
        der::P256 => Key::p256(key),
        der::P384 => Key::p384(key),
        der::ED25519 => Key::ed25519(key),
        _ => Err(UNSUPPORTED.to_owned()),
    }
}

fn of_rsa_der(bytes: &[u8]) -> Result<Key, String> {
    let (n, e) = der::rsa_public_key(bytes).ok_or("the RSA key can't be read")?;
    Key::rsa(n, e)
}

/// The key of a secret that was given as text.
pub(super) fn of_secret(text: &str) -> Result<Key, String> {
    let key = Key::secret(text.as_bytes())?;
    if text.trim() != text {
        return Err(
            "expected a secret without white space at its ends, which other programs may trim".to_owned(),
        );
    }
    Ok(key)
}

const PUBLIC: &str = "this is a public key or a key set, with which anybody could sign: a public key belongs into \
                      JWT_PUBLIC_KEY, a key set into JWKS_FILE";

/// Whether a secret is a text that others may have: a PEM block, a JSON Web Key or a set of them, a public key without
/// its PEM lines, or SSH's.
pub(super) fn is_public(secret: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(secret) else {
        return false;
    };
    let is_json = text.trim_start().starts_with(['{', '['])
        && ["\"kty\"", "\"keys\""].iter().any(|name| text.contains(name));
    let bare: String = text.replace("\\n", "").split_whitespace().collect();
    let bare = bare.trim_end_matches('=');
    let der = STANDARD_NO_PAD
        .decode(bare)
        .or_else(|_| URL_SAFE_NO_PAD.decode(bare));
    let is_der = |der: &[u8]| der::public_key_info(der).is_some() || der::rsa_public_key(der).is_some();
    text.contains("-----BEGIN ")
        || is_json
        || der.is_ok_and(|der| is_der(&der))
        || ["ssh-", "ecdsa-sha2-"]
            .iter()
            .any(|start| text.trim_start().starts_with(start))
}

pub(super) fn different_bytes(bytes: &[u8]) -> usize {
    bytes.iter().collect::<HashSet<_>>().len()
}

/// Checks `JWT_SECRET`.
///
/// # Errors
///
/// What is expected.
pub fn check_secret(text: &str) -> Result<(), String> {
    of_secret(text).map(drop)
}

/// Checks `JWT_PUBLIC_KEY`.
///
/// # Errors
///
/// What is expected.
pub fn check_pem(text: &str) -> Result<(), String> {
    of_pem(text).map(drop)
}
