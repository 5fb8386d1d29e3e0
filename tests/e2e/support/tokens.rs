//! Tokens for tests, signed with keys of each kind; `src/auth` includes this file for its unit tests, too.

#![allow(dead_code, reason = "each user of this file uses its own part of it")]

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use ring::{hmac, rsa};
use serde_json::{Value, json};

pub const SECRET: &str = "a-secret-of-tests-0123456789abcdef";

/// A key that signs.
pub enum Signer {
    Secret(Vec<u8>),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(Box<RsaKeyPair>),
}

/// The key of [`SECRET`].
pub fn hs() -> Signer {
    Signer::Secret(SECRET.as_bytes().to_vec())
}

/// A fresh key.
pub fn es256() -> Signer {
    Signer::P256(ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING))
}

/// A fresh key.
pub fn es384() -> Signer {
    Signer::P384(ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING))
}

fn ec(algorithm: &'static signature::EcdsaSigningAlgorithm) -> EcdsaKeyPair {
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
    EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random).expect("a key")
}

/// A fresh key.
pub fn ed25519() -> Signer {
    let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
    Signer::Ed25519(Ed25519KeyPair::from_pkcs8(key.as_ref()).expect("a key"))
}

/// Always the same key: ring makes none.
pub fn rsa() -> Signer {
    let pem: String = include_str!("rsa.pem")
        .lines()
        .filter(|line| !line.starts_with('-'))
        .collect();
    let key = STANDARD.decode(pem).expect("base64");
    Signer::Rsa(Box::new(RsaKeyPair::from_pkcs8(&key).expect("a key")))
}

pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A DER value.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = u16::try_from(content.len()).expect("a short value");
    let [high, low] = length.to_be_bytes();
    let length: &[u8] = match length {
        0..0x80 => &[low],
        0x80..0x100 => &[0x81, low],
        _ => &[0x82, high, low],
    };
    [&[tag], length, &content].concat()
}

impl Signer {
    /// The usual algorithm of such a key.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Secret(_) => "HS256",
            Self::P256(_) => "ES256",
            Self::P384(_) => "ES384",
            Self::Ed25519(_) => "EdDSA",
            Self::Rsa(_) => "RS256",
        }
    }

    /// The public key as it is in files.
    pub fn pem(&self) -> String {
        const EC: &[u8] = &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
        let (algorithm, key): (Vec<u8>, &[u8]) = match self {
            Self::Secret(_) => panic!("a secret is not public"),
            Self::P256(key) => (
                [EC, &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]].concat(),
                key.public_key().as_ref(),
            ),
            Self::P384(key) => (
                [EC, &[6, 5, 0x2b, 0x81, 4, 0, 0x22]].concat(),
                key.public_key().as_ref(),
            ),
            Self::Ed25519(key) => (vec![6, 3, 0x2b, 0x65, 0x70], key.public_key().as_ref()),
            Self::Rsa(key) => (
                vec![6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0],
                key.public_key().as_ref(),
            ),
        };
        let key = der(3, &[&[0], key]);
        pem("PUBLIC KEY", &der(0x30, &[&der(0x30, &[&algorithm]), &key]))
    }

    /// The public key as it is in key sets; a secret as it is.
    pub fn jwk(&self, kid: &str) -> Value {
        let coordinates = |point: &[u8]| {
            let (x, y) = point[1..].split_at(point.len() / 2);
            (base64(x), base64(y))
        };
        let mut jwk = match self {
            Self::Secret(secret) => json!({"kty": "oct", "k": base64(secret)}),
            Self::P256(key) => {
                let (x, y) = coordinates(key.public_key().as_ref());
                json!({"kty": "EC", "crv": "P-256", "x": x, "y": y})
            }
            Self::P384(key) => {
                let (x, y) = coordinates(key.public_key().as_ref());
                json!({"kty": "EC", "crv": "P-384", "x": x, "y": y})
            }
            Self::Ed25519(key) => json!({"kty": "OKP", "crv": "Ed25519", "x": base64(key.public_key())}),
            Self::Rsa(key) => {
                let rsa::PublicKeyComponents::<Vec<u8>> { n, e } = key.public_key().into();
                json!({"kty": "RSA", "n": base64(n), "e": base64(e)})
            }
        };
        if !kid.is_empty() {
            jwk["kid"] = kid.into();
        }
        jwk
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Secret(secret) => {
                let hash = match algorithm {
                    "HS384" => hmac::HMAC_SHA384,
                    "HS512" => hmac::HMAC_SHA512,
                    _ => hmac::HMAC_SHA256,
                };
                hmac::sign(&hmac::Key::new(hash, secret), message)
                    .as_ref()
                    .to_vec()
            }
            Self::P256(key) | Self::P384(key) => {
                key.sign(&random, message).expect("a signature").as_ref().to_vec()
            }
            Self::Ed25519(key) => key.sign(message).as_ref().to_vec(),
            Self::Rsa(key) => {
                let encoding: &dyn signature::RsaEncoding = match algorithm {
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    "PS384" => &signature::RSA_PSS_SHA384,
                    "PS512" => &signature::RSA_PSS_SHA512,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(encoding, &random, message, &mut signature)
                    .expect("a signature");
                signature
            }
        }
    }

    /// A token with this header and these claims, byte for byte.
    pub fn raw(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", base64(header), base64(claims));
        let algorithm = serde_json::from_str::<Value>(header).unwrap_or_default();
        let algorithm = algorithm["alg"].as_str().unwrap_or_default().to_owned();
        let signature = self.sign(&algorithm, message.as_bytes());
        format!("{message}.{}", base64(signature))
    }

    /// A token of the usual algorithm.
    pub fn token(&self, claims: &Value) -> String {
        let header = json!({"alg": self.algorithm(), "typ": "JWT"});
        self.raw(&header.to_string(), &claims.to_string())
    }

    /// A token that names its key.
    pub fn token_of(&self, kid: &str, claims: &Value) -> String {
        let header = json!({"alg": self.algorithm(), "kid": kid});
        self.raw(&header.to_string(), &claims.to_string())
    }
}

pub fn pem(label: &str, content: &[u8]) -> String {
    let content = STANDARD.encode(content);
    let lines: Vec<&str> = content
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).expect("ASCII"))
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

/// A key set.
pub fn set(keys: &[Value]) -> String {
    json!({"keys": keys}).to_string()
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let since = std::time::UNIX_EPOCH.elapsed().expect("a time after 1970");
    since.as_secs().try_into().expect("a time that fits")
}

/// Claims that are good for an hour.
pub fn claims(user: &str, role: &str, sessions: Value) -> Value {
    json!({"sub": user, "role": role, "sessions": sessions, "exp": now() + 3600})
}
