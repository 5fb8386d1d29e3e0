//! Changes the password of a running librdkafka client. It uses the new one for its next connection to a broker;
//! existing connections stay. The Rust binding has no function for this.

#![allow(
    unsafe_code,
    reason = "calls librdkafka's C interface: the error it returns is destroyed here"
)]

use std::ffi::{CStr, CString};

use rdkafka::ClientContext;
use rdkafka::bindings::{rd_kafka_error_destroy, rd_kafka_error_string, rd_kafka_sasl_set_credentials};
use rdkafka::client::Client;

use super::Shared;

/// Which version of the password a client has.
#[derive(Default)]
pub struct Credentials {
    version: u64,
}

impl Credentials {
    /// Gives the client the current password, if it has changed since the last call.
    pub fn refresh<C: ClientContext>(&mut self, shared: &Shared, client: &Client<C>) {
        let Some(sasl) = &shared.config.sasl else {
            return;
        };
        let version = sasl.password.version();
        if version == self.version {
            return;
        }
        self.version = version;
        if let Err(error) = set(client, &sasl.username, &sasl.password.value()) {
            tracing::error!(error, "the Kafka client does not accept the new password");
        }
    }
}

fn set<C: ClientContext>(client: &Client<C>, username: &str, password: &str) -> Result<(), String> {
    let text = |text: &str| CString::new(text).map_err(|error| error.to_string());
    let (username, password) = (text(username)?, text(password)?);
    // SAFETY: `client` and so its handle live across the call, which copies both strings. The error, if any, is
    // read before it is destroyed, once.
    unsafe {
        let error = rd_kafka_sasl_set_credentials(client.native_ptr(), username.as_ptr(), password.as_ptr());
        if error.is_null() {
            return Ok(());
        }
        let message = CStr::from_ptr(rd_kafka_error_string(error))
            .to_string_lossy()
            .into_owned();
        rd_kafka_error_destroy(error);
        Err(message)
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::producer::{BaseProducer, Producer};

    #[test]
    fn a_client_accepts_another_password_or_returns_an_error() {
        let mut config = ClientConfig::new();
        let make = |config: &ClientConfig| config.create::<BaseProducer>().unwrap();
        let plain = make(config.set("bootstrap.servers", "127.0.0.1:1"));
        assert_eq!(super::set(plain.client(), "user", "other"), Ok(()));
        assert!(super::set(plain.client(), "user", "with\0NUL").is_err());
    }
}
