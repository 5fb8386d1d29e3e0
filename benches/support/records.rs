//! Records as read from the log.

use livechat_ws::protocol::frame;
use livechat_ws::protocol::ids::SessionId;
use livechat_ws::protocol::record::{Converter, Form, Incoming, Topic};
use livechat_ws::protocol::server::{self, NewMessage};

use super::{TIMESTAMP, user_id};

/// A record of the log, and how long its frame is.
pub struct Record {
    pub session_id: SessionId,
    pub form: Form,
    pub value: Vec<u8>,
    pub frame_len: usize,
}

impl Record {
    /// As this server writes it, with a text of `text_len` bytes: 100 make a payload of some 300.
    pub fn native(session_id: &SessionId, text_len: usize) -> Self {
        let value = server::new_message(&NewMessage {
            message_id: "018f4e3a-7c1e-7000-8000-000000000000",
            session_id,
            sender_id: Some(&user_id(0)),
            sender_type: "agent",
            message: &"x".repeat(text_len),
            message_type: "text",
            attachments: (),
            timestamp: TIMESTAMP,
            client_message_id: None,
        });
        let value = value.expect("it can be encoded");
        Self {
            session_id: session_id.clone(),
            form: Form::Native,
            frame_len: frame::text_frame_len(value.len()),
            value,
        }
    }

    /// As the old backend writes it.
    pub fn old(session_id: &SessionId, text_len: usize) -> Self {
        let text = "x".repeat(text_len);
        let value = format!(
            r#"{{"id":"018f4e3a-7c1e-7000-8000-000000000000","session_id":"{session_id}","sender_id":"user_00000",
            "sender_type":"agent","message":"{text}","message_type":"text","attachments":null,"read_at":null,
            "created_at":"2026-01-31 09:30:00.123456+07:00","updated_at":"2026-01-31 09:30:00.123456+07:00",
            "show_escalation_offer":false}}"#
        );
        let converted = Converter::default().message(value.as_bytes(), |_| true);
        let (_, payload) = converted.expect("a good record").expect("a wanted record");
        Self {
            session_id: session_id.clone(),
            form: Form::Legacy,
            frame_len: frame::text_frame_len(payload.len()),
            value: value.into_bytes(),
        }
    }

    pub fn incoming(&self) -> Incoming<'_> {
        Incoming {
            topic: Topic::Messages,
            partition: 0,
            offset: 0,
            form: self.form,
            key: Some(self.session_id.as_str().as_bytes()),
            value: Some(&self.value),
            time: 0,
            node: None,
            message_id: None,
            client_id: None,
        }
    }
}
