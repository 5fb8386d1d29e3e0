//! What a token says, and who that makes its bearer.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;

use super::Refusal;
use super::rights::{Principal, Sessions};
use super::settings::Settings;
use crate::protocol::ids::{SessionId, UserType};

/// The claims of a token. Two of the same name are refused: which of them counts would depend on the reader.
pub(super) struct Claims(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unique;

        impl<'de> Visitor<'de> for Unique {
            type Value = Claims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Claims, M::Error> {
                let mut claims: Vec<(String, Value)> = Vec::new();
                while let Some((name, value)) = map.next_entry()? {
                    // There are few, and they are signed.
                    if claims.iter().any(|(other, _)| *other == name) {
                        return Err(M::Error::custom("a claim is there twice"));
                    }
                    claims.push((name, value));
                }
                Ok(Claims(claims))
            }
        }

        deserializer.deserialize_map(Unique)
    }
}

impl Claims {
    /// Reads the middle part of a token, whose signature has been verified.
    pub(super) fn decode(encoded: &str) -> Result<Self, Refusal> {
        let json = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| Refusal::Invalid)?;
        serde_json::from_slice(&json).map_err(|_| Refusal::Invalid)
    }

    /// A claim; null is absent.
    fn get(&self, name: &str) -> Option<&Value> {
        let (_, value) = self.0.iter().find(|(other, _)| other == name)?;
        Some(value).filter(|value| !value.is_null())
    }

    /// A claim that must be a text if it is there.
    fn text(&self, name: &str) -> Result<Option<&str>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or(Refusal::Invalid),
        }
    }

    /// Whoever bears the token, at this time, in seconds since 1970.
    pub(super) fn principal(&self, settings: &Settings, now: i64) -> Result<Principal, Refusal> {
        let leeway = settings.leeway_seconds();
        let expires_at = self.get("exp").and_then(seconds).ok_or(Refusal::Invalid)?;
        if let Some(not_before) = self.get("nbf") {
            let not_before = seconds(not_before).ok_or(Refusal::Invalid)?;
            if now < not_before - leeway {
                return Err(Refusal::Invalid);
            }
        }
        if settings.issuer.is_some() && self.text("iss")? != settings.issuer.as_deref() {
            return Err(Refusal::Invalid);
        }
        if let Some(audience) = &settings.audience
            && !self.is_for(audience)
        {
            return Err(Refusal::Invalid);
        }
        let user = self.text(&settings.claim_user)?.map(str::to_owned);
        let role = self.text(&settings.claim_role)?.and_then(UserType::parse);
        let sessions = self.sessions(&settings.claim_sessions, role)?;
        // Last: a token that expired and is wrong in another way will not do when it is renewed.
        if now >= expires_at + leeway {
            return Err(Refusal::Expired);
        }
        Ok(Principal {
            user,
            role,
            sessions,
            expires_at,
        })
    }

    /// Whether `aud` is this audience, or has it in its list.
    fn is_for(&self, audience: &str) -> bool {
        match self.get("aud") {
            Some(Value::String(only)) => only == audience,
            Some(Value::Array(several)) => several.iter().any(|one| one == audience),
            _ => false,
        }
    }

    fn sessions(&self, name: &str, role: Option<UserType>) -> Result<Sessions, Refusal> {
        match self.get(name) {
            None if role == Some(UserType::Customer) => Ok(Sessions::Listed(Vec::new())),
            None => Ok(Sessions::All),
            Some(Value::String(all)) if all == "*" => Ok(Sessions::All),
            Some(Value::Array(ids)) => {
                let ids: Option<Vec<&str>> = ids.iter().map(Value::as_str).collect();
                let ids = ids.ok_or(Refusal::Invalid)?;
                // Others are no sessions, and so cover none.
                let ids = ids.into_iter().filter_map(SessionId::parse);
                Ok(Sessions::Listed(ids.collect()))
            }
            Some(_) => Err(Refusal::Invalid),
        }
    }
}

/// A NumericDate (RFC 7519, section 2), from 1970 to the year 9999, which RFC 3339 can't pass.
fn seconds(value: &Value) -> Option<i64> {
    let seconds = match value.as_i64() {
        Some(seconds) => seconds,
        // As a float, whatever integer is beyond 64 bits is beyond the year 9999, too.
        None => value.as_f64().filter(|seconds| (0.0..1e12).contains(seconds))? as i64,
    };
    let is_a_time = seconds >= 0 && jiff::Timestamp::from_second(seconds).is_ok();
    is_a_time.then_some(seconds)
}
