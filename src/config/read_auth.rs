//! Reads the variables for tokens and API keys.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use hyper::Uri;

use super::Variable;
use super::parse::number;
use super::reader::Reader;
use crate::auth::{self, KeySetSource, Settings};
use crate::secret::Secret;

const LONGEST_LEEWAY: Duration = Duration::from_secs(600);

pub(super) fn auth(r: &mut Reader<'_>) -> Settings {
    let secret = checked(r, "JWT_SECRET", "JWT_SECRET_FILE", auth::check_secret);
    let public_key = checked(r, "JWT_PUBLIC_KEY", "JWT_PUBLIC_KEY_FILE", auth::check_pem);
    let file = r.optional("JWKS_FILE", |path| {
        let content = Secret::from_file("JWKS_FILE", Path::new(path))?;
        auth::check_set(&content.value())?;
        Ok(KeySetSource::File(content))
    });
    let url = r.optional("JWKS_URL", |text| {
        check_url(text).map(|()| KeySetSource::Url(text.to_owned()))
    });
    if file.is_some() && url.is_some() {
        r.wrong("JWKS_FILE", "JWKS_URL is set, too: expected only one of them");
    }
    let api_keys = checked(r, "API_KEYS", "API_KEYS_FILE", auth::check_api_keys);
    let [claim_user, claim_role, claim_sessions] =
        ["JWT_CLAIM_USER", "JWT_CLAIM_ROLE", "JWT_CLAIM_SESSIONS"].map(|name| r.required(name, claim));
    let taken = [&claim_user, &claim_role];
    if taken[0] == taken[1] {
        r.wrong("JWT_CLAIM_ROLE", "expected another claim than JWT_CLAIM_USER's");
    }
    if taken.contains(&&claim_sessions) {
        r.wrong(
            "JWT_CLAIM_SESSIONS",
            "expected another claim than the user's and the role's",
        );
    }
    let settings = Settings {
        secret,
        public_key,
        key_set: file.or(url),
        issuer: r.text("JWT_ISSUER"),
        audience: r.text("JWT_AUDIENCE"),
        leeway: r.duration("JWT_LEEWAY", Duration::ZERO, LONGEST_LEEWAY),
        claim_user,
        claim_role,
        claim_sessions,
        api_keys,
        failures_per_minute: r.required("AUTH_FAILURES_PER_MINUTE", |text| number(text, 0..=1_000_000)),
    };
    let keys = [
        "JWT_SECRET",
        "JWT_SECRET_FILE",
        "JWT_PUBLIC_KEY",
        "JWT_PUBLIC_KEY_FILE",
        "JWKS_FILE",
        "JWKS_URL",
    ];
    if !settings.are_tokens_on() && !keys.iter().any(|name| r.is_wrong(name)) {
        // Whoever sets one of these expects tokens to be checked.
        for name in [
            "JWT_ISSUER",
            "JWT_AUDIENCE",
            "JWT_LEEWAY",
            "JWT_CLAIM_USER",
            "JWT_CLAIM_ROLE",
            "JWT_CLAIM_SESSIONS",
        ] {
            // Written out, a default changes nothing.
            let is_default =
                r.text(name).as_deref() == Variable::named(name).map(|variable| variable.default);
            if r.text(name).is_some() && !is_default && !r.is_wrong(name) {
                r.wrong(
                    name,
                    "needs a key: JWT_SECRET, JWT_PUBLIC_KEY, JWKS_FILE or JWKS_URL",
                );
            }
        }
    }
    settings
}

/// A secret that is checked wherever it comes from.
fn checked(
    r: &mut Reader<'_>,
    name: &'static str,
    file: &'static str,
    check: fn(&str) -> Result<(), String>,
) -> Option<Secret> {
    let secret = r.secret(name, file)?;
    if let Err(accepted) = check(&secret.value()) {
        r.wrong(if r.text(file).is_some() { file } else { name }, accepted);
    }
    Some(secret)
}

fn claim(text: &str) -> Result<String, String> {
    if ["exp", "nbf", "iss", "aud", "iat"].contains(&text) {
        return Err("expected a claim that has no other meaning".to_owned());
    }
    if text.chars().any(char::is_control) {
        return Err("expected a claim's name, without control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// `https`, or `http` to this machine: a key set that anybody on the way could replace would let them in.
fn check_url(text: &str) -> Result<(), String> {
    const ACCEPTED: &str =
        "expected https://host[:port]/path, or http:// for this machine (localhost, 127.0.0.1)";
    let accepted = || ACCEPTED.to_owned();
    let uri: Uri = text.parse().map_err(|_| accepted())?;
    let authority = uri.authority().ok_or_else(accepted)?;
    if authority.as_str().contains('@') {
        return Err("no user and password are sent for a key set: expected none in the URL".to_owned());
    }
    let has_port = authority.as_str() != authority.host();
    if has_port && authority.port_u16().is_none() {
        return Err(accepted());
    }
    let host = authority.host().trim_matches(['[', ']']);
    let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if is_here => Ok(()),
        _ => Err(accepted()),
    }
}
