//! Walks the table of rights over real sockets: every route and every frame, for each who may ask, in a session that is
//! theirs and in another, with tokens off and on. What is expected is written here, not read from the server.

use livechat_ws::auth::rights::{Action, TABLE};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Error;

use crate::auth_cursors::from_the_start;
use crate::support::http::head;
use crate::support::tokens::{SECRET, claims, hs};
use crate::support::{Client, Http, Server};

const OWN: &str = "own";
const OTHER: &str = "other";
const API_KEY: &str = "a-key-of-tests-0123456789";

/// Who asks, and where.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Asks {
    /// Tokens are off, in development and in production.
    Anyone,
    AnyoneInProduction,
    /// Tokens are on.
    Nobody,
    Customer(&'static str),
    /// With a list of sessions, and without.
    Agent(&'static str),
    AgentOfAll,
    Admin(&'static str),
    AdminOfAll,
    Backend,
}

use Asks::{Admin, AdminOfAll, Agent, AgentOfAll, Anyone, AnyoneInProduction, Backend, Customer, Nobody};

const ASKS: [Asks; 12] = [
    Anyone,
    AnyoneInProduction,
    Nobody,
    Customer(OWN),
    Customer(OTHER),
    Agent(OWN),
    Agent(OTHER),
    AgentOfAll,
    Admin(OWN),
    Admin(OTHER),
    AdminOfAll,
    Backend,
];

/// The status that each gets, in the order of [`ASKS`].
#[rustfmt::skip]
const EXPECTED: [(Action, [u16; 12]); 15] = [
    (Action::Health,       [200, 200, 200, 200, 200, 200, 200, 200, 200, 200, 200, 200]),
    (Action::Connect,      [101, 101, 401, 101, 403, 101, 403, 101, 101, 403, 101, 401]),
    (Action::Rewind,       [101, 403, 401, 101, 403, 101, 403, 101, 101, 403, 101, 401]),
    (Action::ReadStatus,   [200, 200, 401, 200, 403, 200, 403, 200, 200, 403, 200, 200]),
    (Action::ReadMessages, [200, 403, 401, 200, 403, 200, 403, 200, 200, 403, 200, 200]),
    (Action::ListSessions, [200, 403, 401, 403, 403, 200, 200, 200, 200, 200, 200, 401]),
    (Action::Lobby,        [101, 403, 401, 403, 403, 101, 101, 101, 101, 101, 101, 401]),
    (Action::Publish,      [403, 403, 401, 401, 401, 401, 401, 401, 401, 401, 401, 201]),
    (Action::Disconnect,   [403, 403, 401, 401, 401, 401, 401, 401, 401, 401, 401, 202]),
    // 0: an answer that is no error; who can't connect sends no frames.
    (Action::JoinSession,  [0,   0,   401, 0,   403, 0,   403, 0,   0,   403, 0,   401]),
    (Action::Typing,       [0,   0,   401, 0,   403, 0,   403, 0,   0,   403, 0,   401]),
    (Action::SendMessage,  [0,   0,   401, 0,   403, 0,   403, 0,   0,   403, 0,   401]),
    (Action::MarkRead,     [0,   0,   401, 0,   403, 0,   403, 0,   0,   403, 0,   401]),
    (Action::Ping,         [0,   0,   401, 0,   403, 0,   403, 0,   0,   403, 0,   401]),
    // 1: the error `auth_disabled`.
    (Action::Authenticate, [1,   1,   401, 0,   403, 0,   403, 0,   0,   403, 0,   401]),
];

struct Servers {
    off: Server,
    off_in_production: Server,
    on: Server,
}

impl Servers {
    fn start() -> Self {
        let off = Server::builder();
        let production = Server::builder()
            .env("ENVIRONMENT", "production")
            .env("ALLOWED_ORIGINS", "https://a.example");
        let on = Server::builder()
            .env("JWT_SECRET", SECRET)
            .env("API_KEYS", format!("another-key-0123456789,{API_KEY}"));
        let [off, off_in_production, on] = [off, production, on].map(|server| server.start());
        Self {
            off,
            off_in_production,
            on,
        }
    }

    fn of(&self, asks: Asks) -> &Server {
        match asks {
            Anyone => &self.off,
            AnyoneInProduction => &self.off_in_production,
            _ => &self.on,
        }
    }
}

impl Asks {
    fn user_type(self) -> &'static str {
        match self {
            Agent(_) | AgentOfAll => "agent",
            Admin(_) | AdminOfAll => "admin",
            _ => "customer",
        }
    }

    fn token(self) -> Option<String> {
        let sessions = match self {
            Customer(_) | Agent(_) | Admin(_) => json!(["another", OWN]),
            AgentOfAll | AdminOfAll => Value::Null,
            _ => return None,
        };
        Some(hs().token(&claims("u", self.user_type(), sessions)))
    }

    fn headers(self) -> Vec<(&'static str, String)> {
        match self {
            Backend => vec![("X-API-Key", API_KEY.to_owned())],
            asks => asks
                .token()
                .map(|token| ("Authorization", format!("Bearer {token}")))
                .into_iter()
                .collect(),
        }
    }

    fn session(self) -> &'static str {
        match self {
            Customer(session) | Agent(session) | Admin(session) => session,
            _ => OWN,
        }
    }
}

async fn connect(server: &Server, asks: Asks, query: &str) -> Result<Client, u16> {
    connect_to(
        server,
        asks,
        &format!("/ws/{}/u/{}{query}", asks.session(), asks.user_type()),
    )
    .await
}

async fn connect_to(server: &Server, asks: Asks, path: &str) -> Result<Client, u16> {
    let headers = asks.headers();
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    match Client::open(server.http_addr(), path, &headers).await {
        Ok(mut client) => {
            client.greet().await;
            Ok(client)
        }
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{asks:?}: {error}"),
    }
}

fn get(server: &Server, asks: Asks, path: &str) -> u16 {
    request(server, asks, "GET", path, "")
}

fn request(server: &Server, asks: Asks, method: &str, path: &str, body: &str) -> u16 {
    let (headers, length) = (asks.headers(), body.len().to_string());
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .chain([("Content-Length", length.as_str())])
        .collect();
    let request = head(method, path, &headers) + body;
    let response = Http::exchange(server.http_addr(), request.as_bytes()).expect("an answer");
    if response.status >= 300 {
        response.assert_error(response.status);
        let challenge = (response.status == 401).then_some("Bearer");
        assert_eq!(response.header("www-authenticate"), challenge);
    }
    response.status
}

/// What comes back to a frame: 0, or 1 for `auth_disabled`.
async fn answer(client: &mut Client, frame: Value) -> u16 {
    let mut frame = frame;
    frame["request_id"] = "asked".into();
    client.send(frame).await;
    let answer = client
        .next_where("the answer", |frame| frame["request_id"] == "asked")
        .await;
    match answer["data"]["code"].as_str() {
        None => 0,
        Some("auth_disabled") => 1,
        Some(code) => panic!("{code}: {answer}"),
    }
}

async fn ask(servers: &Servers, asks: Asks, action: Action) -> u16 {
    let server = servers.of(asks);
    let session = asks.session();
    match action {
        Action::Health => {
            let open = ["/health", "/live", "/ready", "/openapi.json", "/asyncapi.json"];
            let [health, others @ ..] = open.map(|path| get(server, asks, path));
            assert_eq!([health; 4], others);
            health
        }
        Action::ReadStatus => get(server, asks, &format!("/api/session/{session}/connection-status")),
        Action::ReadMessages => get(server, asks, &format!("/api/session/{session}/messages")),
        Action::ListSessions => get(server, asks, "/api/sessions"),
        Action::Lobby => {
            // Anyone may be an agent where tokens are off; customers never see it.
            let customer = connect_to(server, asks, "/ws/@lobby/u/customer").await;
            assert_ne!(customer.err().unwrap_or(101), 101, "{asks:?}");
            let of_type = if asks.user_type() == "admin" {
                "admin"
            } else {
                "agent"
            };
            connect_to(server, asks, &format!("/ws/@lobby/u/{of_type}"))
                .await
                .map_or_else(|status| status, |_| 101)
        }
        Action::Connect => match connect(server, asks, "").await {
            Ok(client) => {
                // Nor does `since` show more than `rewind` does: a cursor is good as it was given, and nowhere else.
                let given = client.greeting["cursor"].as_str().expect("a cursor");
                let forged = format!("?since={}", from_the_start(given));
                let mut again = connect(server, asks, &forged).await.expect("let in");
                let resumed = again.next("resumed").await;
                assert_eq!(
                    (&resumed["data"]["recovered"], &resumed["data"]["reason"]),
                    (&json!(false), &json!("invalid")),
                    "{asks:?}"
                );
                101
            }
            Err(status) => status,
        },
        Action::Publish => {
            let path = format!("/api/session/{session}/messages");
            request(server, asks, "POST", &path, r#"{"message":"a"}"#)
        }
        Action::Disconnect => {
            let path = format!("/api/session/{session}/users/nobody");
            request(server, asks, "DELETE", &path, "")
        }
        Action::Rewind => {
            // Also one that can't be understood.
            let second = connect(server, asks, "?rewind=0")
                .await
                .map_or_else(|status| status, |_| 101);
            let first = connect(server, asks, "?rewind=5")
                .await
                .map_or_else(|status| status, |_| 101);
            assert_eq!(first, second, "{asks:?}");
            first
        }
        frame => {
            let mut client = match connect(server, asks, "").await {
                Ok(client) => client,
                Err(status) => return status,
            };
            match frame {
                Action::JoinSession => answer(&mut client, json!({"type": "join_session"})).await,
                Action::Ping => answer(&mut client, json!({"type": "ping"})).await,
                Action::SendMessage => {
                    let frame = json!({"type": "send_message", "data": {"message": "hello"}});
                    answer(&mut client, frame).await
                }
                Action::Authenticate => {
                    let token = asks.token().unwrap_or_default();
                    answer(&mut client, json!({"type": "auth", "data": {"token": token}})).await
                }
                Action::Typing | Action::MarkRead => {
                    let kind = match frame {
                        Action::Typing => "typing_start",
                        _ => "message_read",
                    };
                    client.send(json!({"type": kind, "data": {"up_to": "m"}})).await;
                    client.fence().await;
                    assert!(client.take_all("error").is_empty());
                    0
                }
                other => panic!("{other:?} is walked nowhere"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_the_table_of_rights_holds_over_sockets() {
    let servers = Servers::start();
    let walked: Vec<Action> = EXPECTED.iter().map(|(action, _)| *action).collect();
    for (action, _) in TABLE {
        assert!(walked.contains(&action), "{action:?} is not walked");
    }
    let mut wrong = Vec::new();
    for (action, expected) in EXPECTED {
        for (asks, expected) in ASKS.into_iter().zip(expected) {
            let status = ask(&servers, asks, action).await;
            if status != expected {
                wrong.push(format!("{asks:?} {action:?}: {status}, not {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
