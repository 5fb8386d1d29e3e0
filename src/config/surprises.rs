//! Settings that are accepted and deserve a warning.

use super::{Config, Environment, Origins};

/// Warnings about accepted values that may not do what was intended. `given` returns values that are set and not empty.
pub(super) fn surprises(config: &Config, given: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |applies: bool, text: &str| {
        if applies {
            warnings.push(text.to_owned());
        }
    };
    let is_set = |name| given(name).is_some();
    let is_production = config.environment == Environment::Production;
    let is_any = config.allowed_origins == Origins::Any;
    warn(
        is_production && is_any,
        "ENVIRONMENT=production with ALLOWED_ORIGINS=*: any website may connect its visitors; list your origins",
    );
    warn(
        is_production && !config.auth.are_tokens_on(),
        "ENVIRONMENT=production without tokens: anybody may speak as anyone in every session whose id they know; set \
         JWT_SECRET, JWT_PUBLIC_KEY, JWKS_FILE or JWKS_URL",
    );
    warn(
        is_production && config.demo,
        "DEMO=true with ENVIRONMENT=production: anybody may open the console at /demo and see how busy this node is",
    );
    warn(
        config.auth.key_set_url().is_some() && config.auth.audience.is_none(),
        "JWKS_URL without JWT_AUDIENCE: a token that its issuer made for another service is accepted, too",
    );
    warn(
        !is_production && !is_any,
        "ALLOWED_ORIGINS is only enforced with ENVIRONMENT=production: any origin may connect now",
    );
    warn(
        !is_production && config.allow_credentials,
        "ALLOW_CREDENTIALS=true has no effect without ENVIRONMENT=production",
    );
    let redis_parts: Vec<_> = ["REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD"]
        .into_iter()
        .filter(|name| is_set(name))
        .collect();
    if is_set("REDIS_URL") && !redis_parts.is_empty() {
        warn(
            true,
            &format!("REDIS_URL is set, so {} is ignored", redis_parts.join(", ")),
        );
    }
    warn(
        !is_set("REDIS_URL") && !is_set("REDIS_HOST") && is_set("REDIS_PORT"),
        "REDIS_PORT has no effect without REDIS_HOST: presence is kept in this process",
    );
    warn(
        is_set("KAFKA_BROKERS") && is_set("KAFKA_BROKER") && given("KAFKA_BROKERS") != given("KAFKA_BROKER"),
        "KAFKA_BROKERS is set, so KAFKA_BROKER is ignored",
    );
    let is_zero = |name| given(name).is_some_and(|value| value.bytes().all(|b| b == b'0'));
    warn(
        is_zero("RATE_LIMIT_MESSAGES") != is_zero("RATE_LIMIT_BURST"),
        "RATE_LIMIT_MESSAGES=0 or RATE_LIMIT_BURST=0 means no rate limit at all, whatever the other is",
    );
    warn(
        config.drain_timeout.is_zero(),
        "DRAIN_TIMEOUT=0s: at shutdown all connections are closed at once, and come back to the other nodes at once",
    );
    warn(
        config.port != 0 && is_set("WS_PORT") && config.ws_port.is_none(),
        "WS_PORT equals PORT: there is one listener",
    );
    warnings
}

/// The keys of tokens, and those of backends.
const TOKEN_KEYS: [&str; 6] = [
    "JWT_SECRET",
    "JWT_SECRET_FILE",
    "JWT_PUBLIC_KEY",
    "JWT_PUBLIC_KEY_FILE",
    "JWKS_FILE",
    "JWKS_URL",
];
const BACKEND_KEYS: [&str; 2] = ["API_KEYS", "API_KEYS_FILE"];

/// Warnings about variables that were meant to protect something, and are empty: a secret that was not mounted, or a
/// name that was misspelt where they are filled in.
pub(super) fn empty_keys(config: &Config, is_empty: &dyn Fn(&str) -> bool) -> Vec<String> {
    let off = |are_on: bool, names: &'static [&'static str], effect: &'static str| {
        let empty = names.iter().filter(move |name| !are_on && is_empty(name));
        empty.map(move |name| format!("{name} is set but empty, which counts as unset: {effect}"))
    };
    let (auth, are_on) = (&config.auth, config.auth.are_tokens_on());
    off(are_on, &TOKEN_KEYS, "no tokens are asked for")
        .chain(off(
            auth.api_keys.is_some(),
            &BACKEND_KEYS,
            "no backend is let in",
        ))
        .chain(off(!are_on, &["JWT_ISSUER"], "tokens of any issuer are accepted"))
        .chain(off(
            !are_on,
            &["JWT_AUDIENCE"],
            "tokens for any audience are accepted",
        ))
        .collect()
}
