//! Real tokens, good and bad.

use std::time::Duration;

use serde_json::{Value, json};

use super::rights::Sessions;
use super::tokens::{SECRET, Signer, base64, claims, ed25519, es256, es384, hs, now, rsa, set};
use super::*;
use crate::protocol::ids::UserType;
use crate::secret::Secret;

pub(super) fn fixed(text: impl Into<String>) -> Option<Secret> {
    Some(Secret::fixed(text.into()))
}

pub(super) fn with(change: impl FnOnce(&mut Settings)) -> Auth {
    let mut settings = Settings {
        leeway: Duration::ZERO,
        ..Settings::default()
    };
    change(&mut settings);
    Auth::new(settings, true)
}

/// With [`SECRET`].
fn with_secret(change: impl FnOnce(&mut Settings)) -> Auth {
    with(|settings| {
        settings.secret = fixed(SECRET);
        change(settings);
    })
}

fn with_pem(signer: &Signer) -> Auth {
    with(|settings| settings.public_key = fixed(signer.pem()))
}

pub(super) fn with_set(keys: &[Value]) -> Auth {
    with(|settings| settings.key_set = Some(KeySetSource::File(Secret::fixed(set(keys)))))
}

pub(super) fn judge(auth: &Auth, token: &str) -> Result<Principal, Refusal> {
    auth.verify_now(token, ADDRESS).expect("an answer at once")
}

pub(super) fn agent() -> Value {
    claims("bob", "agent", Value::Null)
}

pub(super) const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

pub(super) const INVALID: Result<Principal, Refusal> = Err(Refusal::Invalid);

#[test]
fn tokens_of_every_key_and_algorithm_are_accepted() {
    for (signer, algorithms) in [
        (hs(), &["HS256", "HS384", "HS512"][..]),
        (rsa(), &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
        (es256(), &["ES256"]),
        (es384(), &["ES384"]),
        (ed25519(), &["EdDSA"]),
    ] {
        let in_set = with_set(&[signer.jwk("k")]);
        let configured = match &signer {
            Signer::Secret(_) => with_secret(|_| {}),
            signer => with_pem(signer),
        };
        for algorithm in algorithms {
            let token = signer.raw(&json!({ "alg": algorithm }).to_string(), &agent().to_string());
            for auth in [&in_set, &configured] {
                let principal = judge(auth, &token).unwrap_or_else(|why| panic!("{algorithm}: {why:?}"));
                assert_eq!(principal.user.as_deref(), Some("bob"));
                assert_eq!(principal.role, Some(UserType::Agent));
                assert_eq!(principal.sessions, Sessions::All);
            }
            // Any changed character of the signature.
            let (message, signature) = token.rsplit_once('.').unwrap();
            let first = if signature.starts_with('A') { "B" } else { "A" };
            assert_eq!(
                judge(&configured, &format!("{message}.{first}{}", &signature[1..])),
                INVALID
            );
            assert_eq!(judge(&configured, &format!("{message}.")), INVALID);
        }
        let other_user = claims("eve", "agent", Value::Null).to_string();
        let token = signer.token(&agent());
        let (message, signature) = token.rsplit_once('.').unwrap();
        let (header, _) = message.split_once('.').unwrap();
        assert_eq!(
            judge(
                &configured,
                &format!("{header}.{}.{signature}", base64(other_user))
            ),
            INVALID
        );
    }
}

#[test]
fn the_algorithm_follows_from_the_key_and_never_from_the_token() {
    let claims = agent().to_string();
    let unsigned = |algorithm: &str| {
        let header = base64(json!({ "alg": algorithm }).to_string());
        format!("{header}.{}.", base64(&claims))
    };
    for signer in [rsa(), es256(), es384(), ed25519()] {
        let auths = [with_pem(&signer), with_set(&[signer.jwk("k")])];
        for auth in &auths {
            // HS256, with what everybody knows as its secret.
            let jwk = signer.jwk("k");
            let known = [signer.pem(), signer.pem().trim().to_owned(), jwk.to_string()];
            for secret in known.into_iter().chain(["".to_owned()]) {
                for algorithm in ["HS256", "HS384", "HS512"] {
                    let forged = Signer::Secret(secret.clone().into_bytes());
                    let token = forged.raw(&json!({"alg": algorithm, "kid": "k"}).to_string(), &claims);
                    assert_eq!(judge(auth, &token), INVALID, "{algorithm}");
                }
            }
            for algorithm in ["none", "None", "NONE", "", "HS256", "ES256", "RS256"] {
                assert_eq!(judge(auth, &unsigned(algorithm)), INVALID, "{algorithm}");
            }
            // A key of the attacker, in the header, of the same and of other kinds.
            for other in [es256(), es384(), ed25519(), hs()] {
                let header = json!({"alg": other.algorithm(), "jwk": other.jwk("k"), "kid": "k",
                    "jku": "https://evil.example/jwks.json", "x5u": "https://evil.example/x"});
                assert_eq!(judge(auth, &other.raw(&header.to_string(), &claims)), INVALID);
                assert_eq!(judge(auth, &other.token(&agent())), INVALID);
            }
        }
    }
    let auth = with_secret(|_| {});
    assert_eq!(judge(&auth, &unsigned("none")), INVALID);
    assert_eq!(judge(&auth, &es256().token(&agent())), INVALID);
    // A key set's key may have one algorithm only.
    let mut jwk = rsa().jwk("k");
    jwk["alg"] = "PS256".into();
    let auth = with_set(&[jwk]);
    assert_eq!(judge(&auth, &rsa().token(&agent())), INVALID);
    assert!(judge(&auth, &rsa().raw(r#"{"alg":"PS256"}"#, &claims)).is_ok());
}

#[test]
fn a_kid_picks_a_key_by_its_exact_value() {
    let (one, other) = (es256(), es256());
    let auth = with_set(&[one.jwk("k1"), other.jwk("k2")]);
    assert!(judge(&auth, &one.token_of("k1", &agent())).is_ok());
    assert!(judge(&auth, &other.token_of("k2", &agent())).is_ok());
    assert!(
        judge(&auth, &other.token(&agent())).is_ok(),
        "none named: each is tried"
    );
    for kid in [
        "k2",
        "K1",
        "k1 ",
        "",
        "k",
        "../k1",
        "k1\0",
        "k1' OR '1'='1",
        "/dev/null",
    ] {
        assert_eq!(judge(&auth, &one.token_of(kid, &agent())), INVALID, "{kid:?}");
    }
    for kid in [json!(["k1"]), json!({"k1": 1}), json!(1), json!(true)] {
        let header = json!({"alg": "ES256", "kid": kid}).to_string();
        assert_eq!(
            judge(&auth, &one.raw(&header, &agent().to_string())),
            INVALID,
            "{kid}"
        );
    }
    let twice = r#"{"alg":"ES256","kid":"k2","kid":"k1"}"#;
    assert_eq!(judge(&auth, &one.raw(twice, &agent().to_string())), INVALID);
    let twice = r#"{"alg":"none","alg":"ES256"}"#;
    assert_eq!(judge(&auth, &one.raw(twice, &agent().to_string())), INVALID);
    // What a token must be understood with is not.
    for crit in [json!(["exp"]), json!([]), json!(["b64"]), json!("exp")] {
        let header = json!({"alg": "ES256", "crit": crit, "exp": 1}).to_string();
        assert_eq!(
            judge(&auth, &one.raw(&header, &agent().to_string())),
            INVALID,
            "{crit}"
        );
    }
    let unencoded = r#"{"alg":"ES256","b64":false}"#;
    assert_eq!(judge(&auth, &one.raw(unencoded, &agent().to_string())), INVALID);
}

#[test]
fn times_are_checked_with_the_leeway() {
    let at = |leeway: u64, exp: i64, nbf: Option<i64>| {
        let auth = with_secret(|settings| settings.leeway = Duration::from_secs(leeway));
        let claims =
            json!({"sub": "bob", "role": "agent", "exp": now() + exp, "nbf": nbf.map(|nbf| now() + nbf)});
        judge(&auth, &hs().token(&claims)).map(|principal| principal.expires_at - now())
    };
    // Seconds may pass within the test: no case is at its very edge.
    assert_eq!(at(0, 3600, None).map(|left| left > 3590), Ok(true));
    assert_eq!(at(0, -1, None), Err(Refusal::Expired));
    assert!(at(30, -25, None).is_ok());
    assert_eq!(at(30, -31, None), Err(Refusal::Expired));
    assert!(at(0, 3600, Some(-1)).is_ok() && at(30, 3600, Some(25)).is_ok());
    assert_eq!(at(0, 3600, Some(10)), Err(Refusal::Invalid));
    assert_eq!(at(30, 3600, Some(60)), Err(Refusal::Invalid));
}

#[test]
fn a_time_must_be_a_time() {
    let auth = with_secret(|_| {});
    let judge_exp = |exp: &str| {
        let claims = format!(r#"{{"sub":"bob","role":"agent","exp":{exp}}}"#);
        judge(&auth, &hs().raw(r#"{"alg":"HS256"}"#, &claims))
    };
    for good in ["4102444800", "4102444800.75", "4.1024448e9", "253402207200"] {
        assert!(judge_exp(good).is_ok(), "{good}");
    }
    for bad in [
        "null",
        "\"4102444800\"",
        "true",
        "[4102444800]",
        "{}",
        "-1",
        "-4102444800",
        // In milliseconds, and beyond 64 bits, of a float, and more.
        "4102444800000",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "184467440737095516160000",
        "1e19",
        "1e308",
        "1e999",
        "-1e999",
        "NaN",
    ] {
        assert_eq!(judge_exp(bad), INVALID, "{bad}");
    }
    assert_eq!(judge_exp("0"), Err(Refusal::Expired));
    let judge_claims = |claims: &str| judge(&auth, &hs().raw(r#"{"alg":"HS256"}"#, claims));
    assert_eq!(judge_claims(r#"{"sub":"bob","role":"agent"}"#), INVALID, "no exp");
    for nbf in ["\"1\"", "1e999", "[]", "18446744073709551616", "-1"] {
        let claims = format!(r#"{{"sub":"bob","role":"agent","exp":4102444800,"nbf":{nbf}}}"#);
        assert_eq!(judge_claims(&claims), INVALID, "{nbf}");
    }
}

#[test]
fn a_claim_that_is_there_twice_is_refused() {
    let auth = with_secret(|_| {});
    for claims in [
        r#"{"sub":"eve","sub":"bob","role":"agent","exp":4102444800}"#,
        r#"{"sub":"bob","role":"customer","role":"agent","exp":4102444800}"#,
        r#"{"sub":"bob","role":"agent","exp":1,"exp":4102444800}"#,
        r#"{"sub":"bob","role":"agent","exp":4102444800,"other":1,"other":1}"#,
        r#"{"sub":"bob","role":"agent","exp":4102444800,"\u0073ub":"eve"}"#,
    ] {
        assert_eq!(
            judge(&auth, &hs().raw(r#"{"alg":"HS256"}"#, claims)),
            INVALID,
            "{claims}"
        );
    }
}

#[test]
fn issuer_and_audience_are_required_where_they_are_set() {
    let auth = with_secret(|settings| {
        settings.issuer = Some("https://id.example".to_owned());
        settings.audience = Some("chat".to_owned());
    });
    let judge = |issuer: Value, audience: Value| {
        let claims =
            json!({"sub": "bob", "role": "agent", "exp": now() + 60, "iss": issuer, "aud": audience});
        judge(&auth, &hs().token(&claims)).is_ok()
    };
    assert!(judge(json!("https://id.example"), json!("chat")));
    assert!(judge(json!("https://id.example"), json!(["shop", "chat"])));
    for issuer in [
        Value::Null,
        json!("https://id.example/"),
        json!(["https://id.example"]),
        json!(""),
    ] {
        assert!(!judge(issuer.clone(), json!("chat")), "{issuer}");
    }
    for audience in [
        Value::Null,
        json!("Chat"),
        json!(["shop"]),
        json!([["chat"]]),
        json!([]),
        json!({"chat": 1}),
    ] {
        assert!(
            !judge(json!("https://id.example"), audience.clone()),
            "{audience}"
        );
    }
    // Where none is set, a token may have any.
    let claims = json!({"sub": "bob", "role": "agent", "exp": now() + 60, "iss": ["x"], "aud": 1});
    assert!(super::token_tests::judge(&with_secret(|_| {}), &hs().token(&claims)).is_ok());
}

#[test]
fn sessions_are_a_list_or_all() {
    let auth = with_secret(|settings| {
        settings.claim_user = "uid".to_owned();
        settings.claim_role = "https://chat.example/role".to_owned();
        settings.claim_sessions = "rooms".to_owned();
    });
    let covers = |role: &str, sessions: Value| {
        let claims =
            json!({"uid": "u", "https://chat.example/role": role, "rooms": sessions, "exp": now() + 60});
        let principal = judge(&auth, &hs().token(&claims)).ok()?;
        let session = SessionId::parse("018f4e3a-7c1e-7000-8000-00000000000a").unwrap();
        Some(principal.sessions.cover(&session))
    };
    for role in ["customer", "agent", "admin"] {
        assert_eq!(covers(role, json!("*")), Some(true));
        assert_eq!(covers(role, Value::Null), Some(role != "customer"));
        assert_eq!(
            covers(role, json!(["x", "018F4E3A-7C1E-7000-8000-00000000000A"])),
            Some(true)
        );
        for none in [json!([]), json!(["*"]), json!(["x"]), json!(["018f4e3a", ""])] {
            assert_eq!(covers(role, none.clone()), Some(false), "{none}");
        }
        for bad in [
            json!("018f4e3a-7c1e-7000-8000-00000000000a"),
            json!(1),
            json!([1]),
            json!([null]),
            json!({}),
        ] {
            assert_eq!(covers(role, bad.clone()), None, "{bad}");
        }
    }
    let of = |claims: Value| {
        let principal = judge(&auth, &hs().token(&claims)).ok()?;
        Some((principal.user, principal.role))
    };
    let (exp, role) = (now() + 60, "https://chat.example/role");
    // The usual names mean nothing where others are set.
    assert_eq!(
        of(json!({"sub": "u", "role": "agent", "exp": exp})),
        Some((None, None))
    );
    assert_eq!(
        of(json!({"uid": "u", role: "superuser", "exp": exp})),
        Some((Some("u".to_owned()), None))
    );
    assert_eq!(of(json!({"uid": 7, role: "agent", "exp": exp})), None);
    assert_eq!(of(json!({"uid": "u", role: ["agent"], "exp": exp})), None);
}

#[test]
fn texts_that_are_no_tokens_are_refused() {
    let auth = with_secret(|_| {});
    let good = hs().token(&agent());
    let long = claims(&"u".repeat(16 * 1024), "agent", Value::Null);
    for bad in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "é.é.é",
        &good[1..],
        &format!("{good}."),
        &format!("{good}="),
        &format!(" {good}"),
        &good.replace('.', ""),
        &hs().token(&long),
        &"a.".repeat(8 * 1024),
        &hs().raw(r#"{"alg":"HS256"}"#, "[]"),
        &hs().raw(r#"{"alg":"HS256"}"#, "null"),
        &hs().raw("[]", "{}"),
        &hs().raw(r#"{"typ":"JWT"}"#, &agent().to_string()),
        &hs().raw(r#"{"alg":["HS256"]}"#, &agent().to_string()),
        &hs().raw(r#"{"alg":"HS256"}"#, &"[".repeat(5_000)),
    ] {
        assert_eq!(judge(&auth, bad), INVALID, "{bad:.60}");
    }
}
