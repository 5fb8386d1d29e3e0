//! The few structures of DER (X.690) that public keys have.

/// The algorithm of a public key: the whole content of its AlgorithmIdentifier.
pub(super) const RSA: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];
pub(super) const P256: &[u8] = &[
    6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7,
];
pub(super) const P384: &[u8] = &[
    6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 5, 0x2b, 0x81, 4, 0, 0x22,
];
pub(super) const ED25519: &[u8] = &[6, 3, 0x2b, 0x65, 0x70];

const INTEGER: u8 = 2;
const BIT_STRING: u8 = 3;
const SEQUENCE: u8 = 0x30;

/// Algorithm and key of a SubjectPublicKeyInfo.
pub(super) fn public_key_info(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (info, []) = value(SEQUENCE, bytes)? else {
        return None;
    };
    let (algorithm, rest) = value(SEQUENCE, info)?;
    // The first byte counts bits that are not used.
    let ([0, key @ ..], []) = value(BIT_STRING, rest)? else {
        return None;
    };
    Some((algorithm, key))
}

/// Modulus and exponent of an RSAPublicKey (RFC 8017, appendix A.1.1), as signed integers.
pub(super) fn rsa_public_key(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (key, []) = value(SEQUENCE, bytes)? else {
        return None;
    };
    let (modulus, rest) = value(INTEGER, key)?;
    let (exponent, []) = value(INTEGER, rest)? else {
        return None;
    };
    Some((modulus, exponent))
}

/// The value with this tag at the beginning, and what follows it.
fn value(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let [first, length, rest @ ..] = bytes else {
        return None;
    };
    let (length, rest) = match (length, rest) {
        (0..=0x7f, rest) => (usize::from(*length), rest),
        (0x81, [length, rest @ ..]) => (usize::from(*length), rest),
        (0x82, [high, low, rest @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        _ => return None,
    };
    (*first == tag).then(|| rest.split_at_checked(length))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_and_longer_structures_are_refused() {
        let info = [0x30, 10, 0x30, 3, 6, 1, 9, 3, 3, 0, 1, 2];
        assert_eq!(public_key_info(&info), Some((&[6, 1, 9][..], &[1, 2][..])));
        let key = [0x30, 7, 2, 2, 0, 0x80, 2, 1, 3];
        assert_eq!(rsa_public_key(&key), Some((&[0, 0x80][..], &[3][..])));
        for length in 0..info.len() {
            assert_eq!(public_key_info(&info[..length]), None, "{length}");
        }
        for length in 0..key.len() {
            assert_eq!(rsa_public_key(&key[..length]), None, "{length}");
        }
        assert_eq!(public_key_info(&[&info[..], &[0]].concat()), None);
        assert_eq!(rsa_public_key(&[&key[..], &[0]].concat()), None);
        assert_eq!(public_key_info(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
