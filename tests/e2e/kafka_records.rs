//! Records of all kinds, written by Kafka's own client: old ones are mapped, native ones are left alone, poison is
//! skipped.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};

use rdkafka::ClientConfig;
use rdkafka::bindings::{
    RD_KAFKA_MSG_F_COPY, rd_kafka_produceva, rd_kafka_vtype_t as Kind, rd_kafka_vu_s,
    rd_kafka_vu_s__bindgen_ty_1 as Part, rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1,
    rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_2,
};
use rdkafka::producer::{BaseProducer, Producer};
use serde_json::{Value, json};

use crate::services::{OUTAGE, Record, Topics, new_message, start_well, unique};
use crate::support::spec::foreign;
use crate::support::{Client, Opcode, RawWs};

/// A record of the chat backend, and the `data` it must become.
pub fn old_and_new(session: &str, message: &str, n: usize) -> (Value, Value) {
    let id = unique("id");
    let sender = if n.is_multiple_of(3) {
        Value::Null
    } else {
        json!(format!("user-{n}"))
    };
    let sender_type = ["customer", "agent", "ai", "system"][n % 4];
    let attachments = [
        Value::Null,
        json!([]),
        json!([{"url": "https://example.org/a.png", "size": n}]),
    ][n % 3]
        .clone();
    // Whatever the backend writes there: not every one of these is RFC 3339.
    let created = [
        "2024-01-02T03:04:05Z",
        "2024-01-02T10:04:05.123456+07:00",
        "2024-01-02 03:04:05",
    ][n % 3];
    let mut old = json!({"id": id, "session_id": session, "sender_id": sender, "sender_type": sender_type, "message": message,
        "message_type": "text", "attachments": attachments, "read_at": null, "created_at": created, "updated_at": "2024-01-02T03:04:06Z"});
    let mut new = json!({"message_id": id, "session_id": session, "sender_id": sender, "sender_type": sender_type, "message": message,
        "message_type": "text", "attachments": attachments, "timestamp": created});
    if n.is_multiple_of(2) {
        let extra = json!({"offer": [n, true, null, 2.5, "x\"y"], "deep": {"a": {"b": "ü"}}});
        for data in [&mut old, &mut new] {
            data["show_escalation_offer"] = json!(true);
            data["context"] = extra.clone();
        }
    }
    (old, new)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_old_records_reach_their_sessions() {
    const SESSIONS: usize = 25;
    const EACH: usize = 40;
    let topics = Topics::new();
    let server = start_well(topics.node("node-a"));
    let mut clients = Vec::new();
    let mut expected: Vec<BTreeMap<String, Value>> = vec![BTreeMap::new(); SESSIONS];
    let sessions: Vec<_> = (0..SESSIONS).map(|_| unique("session")).collect();
    for session in &sessions {
        clients.push(Client::connect(&server, session, "reader", "agent").await);
    }

    let mut records = Vec::new();
    for n in 0..SESSIONS * EACH {
        let at = n % SESSIONS;
        let (old, new) = old_and_new(&sessions[at], &format!("message {n}"), n);
        expected[at].insert(new["message_id"].as_str().unwrap().to_owned(), new);
        let record = Record::old(old.to_string());
        // A key alone does not make a record native: the header decides.
        let key = n.is_multiple_of(10).then(|| sessions[at].clone().into_bytes());
        records.push(Record { key, ..record });
    }
    topics.kafka.produce(&topics.messages, &records);

    for ((client, expected), session) in clients.iter_mut().zip(expected).zip(&sessions) {
        let mut got = BTreeMap::new();
        for _ in 0..EACH {
            let frame = client.next("new_message").await;
            assert_eq!(frame["success"], true, "{frame}");
            let data = frame["data"].clone();
            let doubled = got.insert(
                data["message_id"].as_str().expect("a message_id").to_owned(),
                data,
            );
            assert!(doubled.is_none(), "twice: {frame}");
        }
        assert_eq!(got, expected, "session {session}");
        client.say_acked("the last word").await;
        assert_eq!(
            client.next("new_message").await["data"]["message"],
            "the last word",
            "one more than was written"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mapped_fields_win_over_unknown_ones() {
    let topics = Topics::new();
    let server = start_well(topics.node("node-a"));
    let session = unique("session");
    let mut client = Client::connect(&server, &session, "reader", "agent").await;
    let (mut old, new) = old_and_new(&session, "hello", 1);
    old["message_id"] = json!("not this");
    old["timestamp"] = json!("nor this");
    topics
        .kafka
        .produce(&topics.messages, &[Record::old(old.to_string())]);
    let frame = client.next("new_message").await;
    assert_eq!(frame["data"], new);
    // In the text itself, too: parsers differ in which of two equal names they take.
    let ws = &mut RawWs::connect(&server, &session, "raw", "agent");
    topics
        .kafka
        .produce(&topics.messages, &[Record::old(old.to_string())]);
    let payload = read_until(ws, |text| text.contains("hello"));
    assert_eq!(payload.matches("\"message_id\"").count(), 1, "{payload}");
    assert_eq!(payload.matches("\"timestamp\"").count(), 1, "{payload}");
}

/// Payloads that our serializer would write differently, so that rewriting them would be noticed.
fn native_payloads(session: &str) -> Vec<Vec<u8>> {
    let mut payloads: Vec<Vec<u8>> = [
        r#"{ "type" : "session_update",  "success":true,"data":{"b":1,"a":2,"a":3} }"#,
        "{\"type\":\"user_joined\",\"success\":true,\"data\":{\"x\":1.10,\"big\":123456789012345678901234567890,\"e\":1e999}}",
        r#"{"type":"new_message","success":true,"data":{"message":"caf\u00e9 \ud83d\ude00 \u0000 \/ \\ \" é 😀"}}"#,
        "{\"type\":\"trailing\",\"success\":true,\"data\":{}}\n\t ",
        "not JSON at all, still a text: 漢字 \u{7f}\u{1} \u{2028}",
        "",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    // Around the lengths at which the WebSocket header changes its form, and the largest allowed record.
    for size in [1, 125, 126, 127, 65_535, 65_536, 1_048_576] {
        let mut text = format!("{session} ");
        text.extend(std::iter::repeat_n('x', size));
        text.truncate(size);
        payloads.push(text.into_bytes());
    }
    payloads
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_records_arrive_byte_for_byte() {
    let topics = Topics::new();
    let (a, b) = topics.two_nodes();
    let session = unique("session");
    let mut sockets = [
        RawWs::connect(&a, &session, "ann", "customer"),
        RawWs::connect(&b, &session, "ben", "agent"),
    ];
    let marker = r#"{"type":"marker","success":true,"data":{}}"#;
    let mut payloads = native_payloads(&session);
    payloads.insert(0, marker.into());
    let mut records: Vec<_> = payloads
        .iter()
        .map(|payload| Record::native(&session, payload))
        .collect();
    // Additional headers change nothing.
    records[1] = records[1]
        .clone()
        .header("livechat-id", "x")
        .header("traceparent", "00-11-22-33");
    topics.kafka.produce(&topics.messages, &records);

    for ws in &mut sockets {
        // Greetings and presence precede the marker; after it, there are only the records.
        read_until(ws, |text| text == marker);
        for payload in &payloads[1..] {
            let frame = ws.read_frame().expect("a frame");
            assert!(frame.is(Opcode::Text), "{frame:?}");
            assert!(
                frame.payload == *payload,
                "expected {:?}, got {:?}",
                shown(payload),
                shown(&frame.payload)
            );
        }
        ws.expect_alive();
    }
}

/// Skips to the first text that fits.
fn read_until(ws: &mut RawWs, fits: impl Fn(&str) -> bool) -> String {
    loop {
        let frame = ws.read_frame().expect("a frame, not the end of the stream");
        let text = String::from_utf8(frame.payload).expect("UTF-8");
        if fits(&text) {
            return text;
        }
    }
}

fn shown(bytes: &[u8]) -> String {
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(120)]).into_owned();
    format!("{start} ({} bytes)", bytes.len())
}

fn odd_texts() -> Vec<String> {
    let controls: String = (0..0x20u8).map(char::from).collect();
    vec![
        "👩‍👩‍👧‍👦 🏳️‍🌈 e\u{301} \u{202e}rtl\u{202c} \u{feff}bom".to_owned(),
        r#"quotes " and \ and \" and \\" and / and \u0041 and {"a":"b"}"#.to_owned(),
        format!("controls {controls} and \u{7f} \u{80} \u{2028} \u{2029} \u{fffd} \u{10ffff}"),
        "x".repeat(60_000),
        // 45 KB, and 120 KB when escaped.
        "é漢😀".repeat(5_000),
        "</script><!-- ' ; DROP TABLE messages; -- %00 %s {{}} ${}".to_owned(),
        " ".to_owned(),
        "\u{0}".to_owned(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unusual_texts_of_clients_are_delivered_unchanged() {
    let topics = Topics::new();
    let (a, b) = topics.two_nodes();
    let session = unique("session");
    let mut ann = Client::connect(&a, &session, "ann", "customer").await;
    let mut ben = Client::connect(&b, &session, "ben", "agent").await;
    for (n, text) in odd_texts().into_iter().enumerate() {
        let attachments = if text.len() < 1_000 {
            json!([{"name": text, "n": n}])
        } else {
            json!([])
        };
        let id = format!("odd {n}");
        let data = json!({"message": text, "message_type": "text", "attachments": attachments, "client_message_id": id});
        ann.send(json!({"type": "send_message", "request_id": id, "data": data}))
            .await;
        let ack = ann
            .next_where("an answer", |frame| frame["request_id"] == id.as_str())
            .await;
        assert_eq!(ack["type"], "message_sent", "{id}: {ack}");
        assert_eq!(ack["data"]["client_message_id"], id.as_str(), "{ack}");
        for client in [&mut ann, &mut ben] {
            let frame = client.next("new_message").await;
            let got = &frame["data"];
            assert!(
                got["message"] == text.as_str(),
                "{id}: {:?}",
                shown(got["message"].to_string().as_bytes())
            );
            assert_eq!(got["message_id"], ack["data"]["message_id"], "{id}");
            assert_eq!(got["client_message_id"], id.as_str());
            assert_eq!(got["attachments"], attachments, "{id}");
            assert_eq!(got["session_id"], session.as_str());
            assert_eq!(
                (&got["sender_id"], &got["sender_type"]),
                (&json!("ann"), &json!("customer"))
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unusual_texts_of_records_are_delivered_unchanged() {
    let topics = Topics::new();
    let server = start_well(topics.node("node-a"));
    let session = unique("session");
    let mut client = Client::connect(&server, &session, "reader", "agent").await;
    let mut records = Vec::new();
    for (n, text) in odd_texts().iter().enumerate() {
        let (old, new) = old_and_new(&session, text, n);
        // All of it escaped: the same text, other bytes.
        let escaped = ascii(&old.to_string());
        let native = json!({"type": "new_message", "success": true, "data": new}).to_string();
        let values = [old.to_string(), escaped];
        records.extend(values.iter().map(|value| Record::old(value).partition(0)));
        records.push(Record::native(&session, native).partition(0));
    }
    topics.kafka.produce(&topics.messages, &records);
    for text in odd_texts() {
        for kind in ["old", "old, escaped", "native"] {
            let frame = client.next("new_message").await;
            let got = &frame["data"]["message"];
            assert!(
                *got == text.as_str(),
                "{kind} {:?}: {:?}",
                shown(text.as_bytes()),
                shown(got.to_string().as_bytes())
            );
        }
    }
}

/// The JSON with everything beyond ASCII as \u escapes, in surrogate pairs where need be.
fn ascii(json: &str) -> String {
    let escape = |unit: u16| {
        if unit < 0x80 {
            char::from(unit as u8).to_string()
        } else {
            format!("\\u{unit:04x}")
        }
    };
    json.encode_utf16().map(escape).collect()
}

/// For librdkafka a header name may be any bytes; for the Java client and the Rust binding it is text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_whose_name_is_not_utf8_is_ignored() {
    let topics = Topics::new();
    let server = start_well(topics.node("node-a"));
    let session = unique("session");
    let mut client = Client::connect(&server, &session, "reader", "agent").await;
    for (text, names) in [
        ("before", [c"caf\xe9", c"livechat-frame"]),
        ("behind", [c"livechat-frame", c"caf\xe9"]),
    ] {
        produce_with_headers(&topics, &session, &new_message(text), &names);
    }
    for text in ["before", "behind"] {
        assert_eq!(client.next("new_message").await["data"]["message"], text);
    }
}

/// By librdkafka, with headers of the value `1`.
#[allow(unsafe_code, reason = "the binding takes names only that are UTF-8")]
fn produce_with_headers(topics: &Topics, key: &str, value: &str, names: &[&CStr]) {
    foreign::note(value.as_bytes(), true);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &topics.kafka.brokers)
        .create()
        .expect("a producer");
    let topic = CString::new(topics.messages.as_str()).expect("a name");
    let part = |vtype, u| rd_kafka_vu_s { vtype, u };
    let bytes = |bytes: &str| Part {
        mem: rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
            ptr: bytes.as_ptr().cast_mut().cast(),
            size: bytes.len(),
        },
    };
    let header = |name: &&CStr| Part {
        header: rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_2 {
            name: name.as_ptr(),
            val: b"1".as_ptr().cast(),
            size: 1,
        },
    };
    let mut parts = vec![
        part(Kind::RD_KAFKA_VTYPE_TOPIC, Part { cstr: topic.as_ptr() }),
        part(Kind::RD_KAFKA_VTYPE_PARTITION, Part { i32_: 0 }),
        part(Kind::RD_KAFKA_VTYPE_KEY, bytes(key)),
        part(Kind::RD_KAFKA_VTYPE_VALUE, bytes(value)),
        part(
            Kind::RD_KAFKA_VTYPE_MSGFLAGS,
            Part {
                i: RD_KAFKA_MSG_F_COPY,
            },
        ),
    ];
    parts.extend(
        names
            .iter()
            .map(|name| part(Kind::RD_KAFKA_VTYPE_HEADER, header(name))),
    );
    // SAFETY: the producer and all that the parts point to live across the call, which copies.
    let error = unsafe { rd_kafka_produceva(producer.client().native_ptr(), parts.as_ptr(), parts.len()) };
    assert!(error.is_null(), "the producer refused the record");
    producer.flush(OUTAGE).expect("a record in the log");
}
