//! The cryptography of tokens: `jsonwebtoken` calls ring, which is linked for TLS anyway
//! (docs/decisions/0008-tokens.md). Nothing is signed here.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result, new_error};
use jsonwebtoken::signature::{Error, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::hmac;
use ring::signature::{
    self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(new_error(ErrorKind::UnsupportedAlgorithm)),
    verifier_factory: verifier,
    // For making JWKs of keys, which is not done.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes `jsonwebtoken` use ring: without it, it panics. Further calls change nothing.
pub(super) fn install() {
    let _ = PROVIDER.install_default();
}

struct RingVerifier {
    algorithm: Algorithm,
    key: Key,
}

enum Key {
    Hmac(hmac::Key),
    Rsa {
        parameters: &'static RsaParameters,
        n: Vec<u8>,
        e: Vec<u8>,
    },
    Point {
        curve: &'static dyn VerificationAlgorithm,
        bytes: Vec<u8>,
    },
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    if key.family() != algorithm.family() {
        return Err(new_error(ErrorKind::InvalidAlgorithm));
    }
    let bytes = || key.try_get_as_bytes();
    let rsa = |parameters| match key.kind() {
        DecodingKeyKind::RsaModulusExponent { n, e } => Ok(Key::Rsa {
            parameters,
            n: n.clone(),
            e: e.clone(),
        }),
        DecodingKeyKind::SecretOrDer(_) => Err(new_error(ErrorKind::InvalidKeyFormat)),
    };
    let key = match algorithm {
        Algorithm::HS256 => Key::Hmac(hmac::Key::new(hmac::HMAC_SHA256, bytes()?)),
        Algorithm::HS384 => Key::Hmac(hmac::Key::new(hmac::HMAC_SHA384, bytes()?)),
        Algorithm::HS512 => Key::Hmac(hmac::Key::new(hmac::HMAC_SHA512, bytes()?)),
        Algorithm::RS256 => rsa(&signature::RSA_PKCS1_2048_8192_SHA256)?,
        Algorithm::RS384 => rsa(&signature::RSA_PKCS1_2048_8192_SHA384)?,
        Algorithm::RS512 => rsa(&signature::RSA_PKCS1_2048_8192_SHA512)?,
        Algorithm::PS256 => rsa(&signature::RSA_PSS_2048_8192_SHA256)?,
        Algorithm::PS384 => rsa(&signature::RSA_PSS_2048_8192_SHA384)?,
        Algorithm::PS512 => rsa(&signature::RSA_PSS_2048_8192_SHA512)?,
        Algorithm::ES256 => point(&signature::ECDSA_P256_SHA256_FIXED, bytes()?),
        Algorithm::ES384 => point(&signature::ECDSA_P384_SHA384_FIXED, bytes()?),
        Algorithm::EdDSA => point(&signature::ED25519, bytes()?),
        _ => return Err(new_error(ErrorKind::UnsupportedAlgorithm)),
    };
    Ok(Box::new(RingVerifier {
        algorithm: *algorithm,
        key,
    }))
}

fn point(curve: &'static dyn VerificationAlgorithm, bytes: &[u8]) -> Key {
    Key::Point {
        curve,
        bytes: bytes.to_vec(),
    }
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        let verified = match &self.key {
            Key::Hmac(key) => hmac::verify(key, message, signature),
            Key::Rsa { parameters, n, e } => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
            }
            Key::Point { curve, bytes } => {
                UnparsedPublicKey::new(*curve, bytes.as_slice()).verify(message, signature)
            }
        };
        verified.map_err(|_| Error::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
