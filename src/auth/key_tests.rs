//! Keys: those that can't be used, and those that change.

use std::time::Duration;

use serde_json::json;

use super::token_tests::{ADDRESS, INVALID, agent, fixed, judge, with, with_set};
use super::tokens::{SECRET, Signer, base64, ed25519, es256, es384, hs, pem, rsa, set};
use super::*;
use crate::secret::Secret;

#[test]
fn keys_that_can_not_be_used_are_refused_without_showing_them() {
    let too_small = pem("RSA PUBLIC KEY", &[0x30, 8, 2, 3, 0, 0xab, 0xcd, 2, 1, 3]);
    // secp256k1.
    let other_curve = "-----BEGIN PUBLIC KEY-----\n\
        MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAENx3BboXv8Sepvlj0qH4LYrrbi6TYVoMJ\n\
        GPZGuLc9SfUSsvxiqRpZL3O/2F9Q8jdSZNFIR4gMHT63u7V4mhsVCg==\n\
        -----END PUBLIC KEY-----";
    for (bad, word) in [
        ("hunter2", "PEM"),
        ("-----BEGIN PUBLIC KEY-----\nhunter2", "no end"),
        (
            "-----BEGIN PUBLIC KEY-----\n?hunter2\n-----END PUBLIC KEY-----",
            "base64",
        ),
        (
            "-----BEGIN PUBLIC KEY-----\nhunter22\n-----END PUBLIC KEY-----",
            "can't be read",
        ),
        (
            "-----BEGIN CERTIFICATE-----\nhunter22\n-----END CERTIFICATE-----",
            "PUBLIC KEY",
        ),
        (include_str!("../../tests/e2e/support/rsa.pem"), "private key"),
        (&too_small, "2048"),
        (other_curve, "P-384"),
        (&es256().pem().repeat(5), "at most 4"),
    ] {
        let error = check_pem(bad).unwrap_err();
        assert!(
            error.contains(word) && !error.contains("hunter2"),
            "{word}: {error}"
        );
    }
    assert!(check_secret("hunter2").unwrap_err().contains("32 bytes"));
    for (bad, word) in [
        ("hunter2", "Key Set"),
        ("{\"keys\":\"hunter2\"}", "Key Set"),
        ("{\"keys\":[{\"kty\":\"hunter2\"}]}", "none of the 1"),
        ("{\"keys\":[]}", "none of the 0"),
    ] {
        let error = check_set(bad).unwrap_err();
        assert!(error.contains(word) && !error.contains("hunter2"), "{error}");
    }
    let (rsa, ec) = (rsa(), es256());
    for pem in [rsa.pem(), ec.pem().replace('\n', "\\n"), rsa.pem() + &ec.pem()] {
        assert_eq!(check_pem(&pem), Ok(()));
    }
}

#[test]
fn unusable_keys_of_a_set_are_left_out() {
    let (good, other) = (es256(), es256());
    let mut encrypts = other.jwk("e");
    encrypts["use"] = "enc".into();
    let mut signs = other.jwk("s");
    signs["key_ops"] = json!(["sign"]);
    let mut of_other_kind = other.jwk("a");
    of_other_kind["alg"] = "RS256".into();
    let curve = json!({"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "kid": "c"});
    let short = json!({"kty": "oct", "k": base64("short"), "kid": "o"});
    let auth = with_set(&[
        encrypts,
        signs,
        of_other_kind,
        curve,
        short,
        json!({"kty": "new"}),
        json!(7),
        good.jwk("g"),
    ]);
    assert!(judge(&auth, &good.token_of("g", &agent())).is_ok());
    for kid in ["e", "s", "a"] {
        assert_eq!(judge(&auth, &other.token_of(kid, &agent())), INVALID, "{kid}");
    }
    let short = Signer::Secret(b"short".to_vec());
    assert_eq!(judge(&auth, &short.token_of("o", &agent())), INVALID);
}

#[test]
fn a_changed_file_replaces_the_key_and_a_bad_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    let (first, second) = (es256(), ed25519());
    std::fs::write(&path, first.pem()).unwrap();
    let content = Secret::from_file("JWT_PUBLIC_KEY_FILE", &path).unwrap();
    let auth = with(|settings| settings.public_key = Some(content.clone()));
    let are_known = || [&first, &second].map(|signer| judge(&auth, &signer.token(&agent())).is_ok());
    assert_eq!(are_known(), [true, false]);
    let change = |text: &str| {
        std::fs::write(&path, text).unwrap();
        content.read_again();
        auth.tick();
    };
    for bad in ["no key", "", "-----BEGIN PUBLIC KEY-----"] {
        change(bad);
        assert_eq!(are_known(), [true, false], "{bad:?}");
    }
    change(&second.pem());
    assert_eq!(are_known(), [false, true]);
    // Both, for as long as tokens of the old one are good.
    change(&(first.pem() + &second.pem()));
    assert_eq!(are_known(), [true, true]);
}

#[tokio::test(start_paused = true)]
async fn a_key_set_is_fetched_for_an_unknown_key() {
    let (first, second) = (es256(), es256());
    let auth = std::sync::Arc::new(with(|settings| {
        settings.key_set = Some(KeySetSource::Url("https://id.example".to_owned()));
    }));
    let token = first.token_of("k1", &agent());
    // The fetch of the start takes too long.
    auth.key_set_requested();
    assert_eq!(auth.verify(&token, ADDRESS).await, Err(Refusal::NoKeys));
    let served = std::sync::Arc::new(parking_lot::Mutex::new(set(&[first.jwk("k1"), hs().jwk("h")])));
    let (fetcher, serving) = (std::sync::Arc::clone(&auth), std::sync::Arc::clone(&served));
    tokio::spawn(async move {
        loop {
            fetcher.key_set_requested();
            let _ = fetcher.key_set_fetched(&serving.lock());
            fetcher.key_set_due(false).await;
        }
    });
    assert!(auth.verify(&token, ADDRESS).await.is_ok());
    assert!(!auth.lacks_key_set());
    // A secret that everybody can fetch is none.
    let of_secret = hs().token_of("h", &agent());
    let pending = auth.verify(&of_secret, ADDRESS).await;
    assert!(
        matches!(pending, Err(Refusal::KeyPending(_))),
        "not yet fetched for it: {pending:?}"
    );
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(auth.verify(&of_secret, ADDRESS).await, INVALID);
    *served.lock() = set(&[second.jwk("k2")]);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(
        auth.verify(&second.token_of("k2", &agent()), ADDRESS)
            .await
            .is_ok(),
        "rotated"
    );
    assert_eq!(auth.verify(&token, ADDRESS).await, INVALID, "the old key is gone");
    // A set that can't be read leaves the old keys.
    *served.lock() = "<html>".to_owned();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let pending = auth.verify(&first.token_of("k3", &agent()), ADDRESS).await;
    assert!(
        matches!(pending, Err(Refusal::KeyPending(_))),
        "the issuer did not say: {pending:?}"
    );
    assert!(
        auth.verify(&second.token_of("k2", &agent()), ADDRESS)
            .await
            .is_ok()
    );
    // One without keys revokes them.
    *served.lock() = set(&[]);
    tokio::time::sleep(Duration::from_secs(310)).await;
    assert_eq!(auth.verify_now(&second.token_of("k2", &agent()), ADDRESS), None);
    assert_eq!(
        auth.verify(&second.token_of("k2", &agent()), ADDRESS).await,
        INVALID
    );
    assert!(!auth.lacks_key_set());
}

#[test]
fn a_file_of_a_key_set_without_keys_revokes_them_and_one_that_can_not_be_read_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.json");
    let signer = es256();
    let whole = set(&[signer.jwk("k")]);
    std::fs::write(&path, &whole).unwrap();
    let content = Secret::from_file("JWKS_FILE", &path).unwrap();
    let auth = with(|settings| settings.key_set = Some(KeySetSource::File(content.clone())));
    let mut encrypts = signer.jwk("k");
    encrypts["use"] = "enc".into();
    let (none, unusable) = (set(&[]), set(&[encrypts]));
    for (text, is_known) in [
        (&*whole, true),
        ("", true),
        ("{}", true),
        ("<html>", true),
        (&none, false),
        (&whole, true),
        (&unusable, false),
        (r#"{"keys":null}"#, false),
        (&whole, true),
        (&whole[..whole.len() / 2], true),
    ] {
        std::fs::write(&path, text).unwrap();
        content.read_again();
        auth.tick();
        let judged = judge(&auth, &signer.token_of("k", &agent()));
        assert_eq!(judged.is_ok(), is_known, "{text}");
        assert!(is_known || judged == INVALID, "{text}");
    }
}

/// What everybody knows does not become a secret, nor does an accident.
#[test]
fn a_secret_that_is_no_secret_is_refused_and_leaves_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, SECRET).unwrap();
    let content = Secret::from_file("JWT_SECRET_FILE", &path).unwrap();
    let auth = with(|settings| settings.secret = Some(content.clone()));
    let (ec, ed) = (es256(), ed25519());
    let ec_pem = ec.pem();
    let bare: String = ec_pem.lines().filter(|line| !line.starts_with('-')).collect();
    for bad in [
        ec_pem.clone(),
        rsa().pem(),
        ec_pem.replace('\n', "\\n"),
        bare,
        set(&[ec.jwk("k")]),
        format!("\n{}", ed.jwk("k")),
        format!("{SECRET} "),
        format!("\u{feff}{}", ec_pem),
        "\u{a0}".to_owned() + SECRET,
        "x".repeat(64),
        "xyz".repeat(20),
    ] {
        std::fs::write(&path, &bad).unwrap();
        content.read_again();
        auth.tick();
        let forged = Signer::Secret(bad.clone().into_bytes()).token(&agent());
        assert_eq!(judge(&auth, &forged), INVALID, "{bad:.40}");
        assert!(judge(&auth, &hs().token(&agent())).is_ok(), "{bad:.40}");
    }
    // Nor as a key of a set.
    for bad in [ec_pem.into_bytes(), vec![7; 64]] {
        let auth = with_set(&[Signer::Secret(bad.clone()).jwk("o"), es256().jwk("k")]);
        let forged = Signer::Secret(bad).token_of("o", &agent());
        assert_eq!(judge(&auth, &forged), INVALID);
    }
}

/// The message of a panic quotes what was unwrapped.
#[test]
fn a_panic_over_a_secret_does_not_show_it() {
    let auth = with(|settings| settings.secret = fixed(SECRET));
    let settings = Settings {
        secret: fixed("canary-0123456789-0123456789-0123456789"),
        api_keys: fixed("canary-0123456789"),
        ..Settings::default()
    };
    let token = "canary.canary.canary";
    let panics: [Box<dyn FnOnce()>; 6] = [
        Box::new(|| check_secret("canary").unwrap()),
        Box::new(|| check_pem("-----BEGIN canary-----").unwrap()),
        Box::new(|| check_set("{\"canary\":1}").unwrap()),
        Box::new(|| check_api_keys("canary").unwrap()),
        Box::new(move || panic!("{settings:?}")),
        Box::new(move || drop(judge(&auth, token).unwrap())),
    ];
    for (number, panic) in panics.into_iter().enumerate() {
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(panic)).expect_err("a panic");
        let message = panicked.downcast_ref::<String>().expect("a message");
        assert!(!message.contains("canary"), "{number}: {message}");
    }
}

#[test]
fn secrets_are_in_no_debug_output() {
    let settings = Settings {
        secret: fixed(SECRET),
        api_keys: fixed("canary-0123456789"),
        ..Settings::default()
    };
    let with_url = KeySetSource::Url("https://id.example/jwks?key=canary#canary".to_owned());
    let shown = format!("{settings:?} {with_url:?} {:?}", keys::check_secret("canary"));
    assert!(
        !shown.contains("a-secret") && !shown.contains("canary"),
        "{shown}"
    );
}

/// Nobody is refused for an address' failures, but what takes long is done in turns and beside the runtime.
#[tokio::test(start_paused = true)]
async fn slow_tokens_of_an_address_with_many_failures_are_verified_in_turns() {
    for (signer, is_slow) in [(es384(), true), (es256(), false), (rsa(), false)] {
        let auth = Arc::new(with(|settings| {
            settings.public_key = fixed(signer.pem());
            settings.failures_per_minute = 2;
        }));
        let token = signer.token(&agent());
        for _ in 0..2 {
            assert!(auth.verify_now(&token, ADDRESS).is_some());
            assert_eq!(auth.count_failure(ADDRESS), None);
        }
        assert_eq!(auth.verify_now(&token, ADDRESS).is_none(), is_slow);
        assert!(auth.verify(&token, ADDRESS).await.is_ok(), "in its turn");
        let other = "192.0.2.2".parse().unwrap();
        assert!(auth.verify_now(&token, other).is_some(), "nobody else waits");
        let turn = auth.suspects.acquire().await.unwrap();
        let waiting = auth.verify(&token, ADDRESS).await;
        assert_eq!(waiting == Err(Refusal::Busy), is_slow, "{waiting:?}");
        drop(turn);
        assert!(auth.verify(&token, ADDRESS).await.is_ok());
    }
}
