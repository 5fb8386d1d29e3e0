//! Tokens for servers that ask for them, and forged ones.

use anyhow::{Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use clap::ValueEnum;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::json;

/// Longer than any benchmark, in seconds.
const LIFETIME: u64 = 3_600;
const SECRET: &str = "a-secret-of-the-load-generator-only";
/// A public key of P-256 (RFC 5480) up to its point.
const P256_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3,
    1, 7, 3, 0x42, 0,
];

/// How tokens are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Signature {
    /// No tokens: the server has no key
    Off,
    Hs256,
    Es256,
}

/// Whoever signs tokens: a server with its [setting](Self::setting) accepts them.
pub enum Issuer {
    Hs256(hmac::Key),
    Es256(Box<EcdsaKeyPair>, SystemRandom),
}

impl Issuer {
    /// `None` without tokens. A key pair is a fresh one.
    pub fn new(signature: Signature) -> Result<Option<Self>> {
        Ok(match signature {
            Signature::Off => None,
            Signature::Hs256 => Some(Self::hs256()),
            Signature::Es256 => {
                let (kind, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
                let key =
                    EcdsaKeyPair::generate_pkcs8(kind, &random).map_err(|_| anyhow!("no key was made"))?;
                let key =
                    EcdsaKeyPair::from_pkcs8(kind, key.as_ref(), &random).map_err(|error| anyhow!(error))?;
                Some(Self::Es256(Box::new(key), random))
            }
        })
    }

    pub fn hs256() -> Self {
        Self::Hs256(hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()))
    }

    /// The server's variable for it.
    pub fn setting(&self) -> (&'static str, String) {
        match self {
            Self::Hs256(_) => ("JWT_SECRET", SECRET.to_owned()),
            Self::Es256(key, _) => {
                let der = [&P256_HEAD[..], key.public_key().as_ref()].concat();
                let pem = format!(
                    "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
                    STANDARD.encode(der)
                );
                ("JWT_PUBLIC_KEY", pem)
            }
        }
    }

    /// For a user in one session.
    pub fn token(&self, session: &str, user: &str, role: &str) -> Result<String> {
        let name = match self {
            Self::Hs256(_) => "HS256",
            Self::Es256(..) => "ES256",
        };
        let signed = unsigned(name, session, user, role);
        let signature = match self {
            Self::Hs256(key) => hmac::sign(key, signed.as_bytes()).as_ref().to_vec(),
            Self::Es256(key, random) => {
                let signature = key.sign(random, signed.as_bytes());
                signature.map_err(|_| anyhow!("not signed"))?.as_ref().to_vec()
            }
        };
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// A token whose claims are right and whose signature was guessed: a server must verify it to know that.
pub fn forged(session: &str, user: &str, role: &str, random: &mut fastrand::Rng) -> String {
    let mut signature = [0; 32];
    random.fill(&mut signature);
    format!(
        "{}.{}",
        unsigned("HS256", session, user, role),
        URL_SAFE_NO_PAD.encode(signature)
    )
}

fn unsigned(algorithm: &str, session: &str, user: &str, role: &str) -> String {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let claims = json!({"sub": user, "role": role, "sessions": [session], "iat": now, "exp": now + LIFETIME});
    let head = json!({"alg": algorithm, "typ": "JWT"});
    [head, claims]
        .map(|part| URL_SAFE_NO_PAD.encode(part.to_string()))
        .join(".")
}

#[cfg(test)]
mod tests {
    use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    use super::*;

    fn parts(token: &str) -> (String, Vec<u8>, serde_json::Value) {
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let claims = URL_SAFE_NO_PAD.decode(signed.split_once('.').unwrap().1).unwrap();
        (
            signed.to_owned(),
            URL_SAFE_NO_PAD.decode(signature).unwrap(),
            serde_json::from_slice(&claims).unwrap(),
        )
    }

    #[test]
    fn tokens_are_signed_by_the_key_that_the_server_gets() {
        let issuer = Issuer::new(Signature::Hs256).unwrap().unwrap();
        let (name, secret) = issuer.setting();
        assert_eq!(name, "JWT_SECRET");
        let (signed, signature, claims) = parts(&issuer.token("s", "u", "agent").unwrap());
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        hmac::verify(&key, signed.as_bytes(), &signature).unwrap();
        assert_eq!((&claims["sub"], &claims["role"]), (&json!("u"), &json!("agent")));
        assert_eq!(claims["sessions"], json!(["s"]));

        let issuer = Issuer::new(Signature::Es256).unwrap().unwrap();
        let (name, pem) = issuer.setting();
        assert_eq!(name, "JWT_PUBLIC_KEY");
        let der = STANDARD.decode(pem.lines().nth(1).unwrap()).unwrap();
        let (signed, signature, _) = parts(&issuer.token("s", "u", "agent").unwrap());
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &der[P256_HEAD.len()..]);
        key.verify(signed.as_bytes(), &signature).unwrap();
        assert!(Issuer::new(Signature::Off).unwrap().is_none());
    }

    #[test]
    fn forged_tokens_differ_from_a_good_one_in_their_signature_only() {
        let mut random = fastrand::Rng::with_seed(1);
        let [one, other] = [(); 2].map(|()| parts(&forged("s", "u", "customer", &mut random)));
        assert_ne!(one.1, other.1);
        assert_eq!(one.2["sub"], "u");
        let Issuer::Hs256(key) = Issuer::hs256() else {
            unreachable!()
        };
        assert!(hmac::verify(&key, one.0.as_bytes(), &one.1).is_err());
    }
}
