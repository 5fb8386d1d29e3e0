//! The page that Prometheus reads, in both of its formats, line by line.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::{Client, Http, Response, Server, eventually};

fn server() -> Server {
    Server::builder().env("ADMIN_ADDR", "127.0.0.1:0").start()
}

fn page(server: &Server, accept: &str) -> Response {
    Http::request(server.admin_addr(), "GET", "/metrics", &[("Accept", accept)])
}

/// What a strict reader of the classic text format (0.0.4) finds: each family's type, and each sample's value.
#[derive(Default)]
struct Page {
    types: BTreeMap<String, String>,
    samples: BTreeMap<String, f64>,
}

impl Page {
    #[track_caller]
    fn classic(text: &str) -> Self {
        let mut page = Self::default();
        let mut helped = BTreeSet::new();
        let mut family = String::new();
        assert!(text.ends_with('\n'), "the last line ends");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a name and a help");
                assert!(help.len() > 3 && helped.insert(name.to_owned()), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a name and a type");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(helped.contains(name), "a help comes first: {line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(
                    page.types.insert(name.into(), kind.into()).is_none(),
                    "twice: {line}"
                );
                family = name.to_owned();
            } else {
                assert!(!line.starts_with('#'), "neither HELP nor TYPE: {line}");
                let (sample, value) = line.rsplit_once(' ').expect("a sample and its value");
                let name = sample.split('{').next().expect("a name");
                let is_of_family = name == family
                    || page.types[&family] == "histogram"
                        && ["_bucket", "_sum", "_count"]
                            .iter()
                            .any(|suffix| name.strip_suffix(suffix) == Some(&family));
                assert!(is_of_family, "{line} stands under {family}");
                assert!(!name.contains("__") && !name.ends_with('_'), "{line}");
                let value = value.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
                assert!(
                    page.samples.insert(sample.into(), value).is_none(),
                    "twice: {line}"
                );
            }
        }
        page
    }

    #[track_caller]
    fn value(&self, sample: &str) -> f64 {
        *self.samples.get(sample).unwrap_or_else(|| panic!("no {sample}"))
    }
}

#[test]
fn metrics_are_classic_text_unless_open_metrics_is_requested() {
    let server = server();
    let plain = "text/plain; version=0.0.4; charset=utf-8";
    for accept in ["*/*", "text/plain", "text/html;q=0.9, */*;q=0.1"] {
        let answer = page(&server, accept);
        assert_eq!(answer.header("content-type"), Some(plain), "{accept}");
        Page::classic(&answer.text());
    }
    let answer = Http::get(server.admin_addr(), "/metrics");
    assert_eq!(answer.header("content-type"), Some(plain));

    // As Prometheus asks.
    let answer = page(
        &server,
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    );
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(answer.header("content-type"), Some(kind));
    let text = answer.text();
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(
        text.contains("# TYPE livechat_connections_opened counter\n"),
        "{text}"
    );
    assert!(text.contains("\nlivechat_connections_opened_total 0\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_include_the_build_the_process_and_the_limits() {
    let server = Server::builder()
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .env("MAX_CONNECTIONS", 77)
        .env("SEND_TIMEOUT", "1500ms")
        .start();
    let _ann = Client::connect(&server, "s", "ann", "customer").await;
    let page = Page::classic(&page(&server, "text/plain").text());
    assert_eq!(page.value("livechat_connections"), 1.0);
    assert_eq!(page.value("livechat_limit_connections"), 77.0);
    assert_eq!(page.value("livechat_limit_send_timeout_seconds"), 1.5);
    assert_eq!(page.value("livechat_draining"), 0.0);
    assert_eq!(page.value("livechat_log_lines_lost_total"), 0.0);
    let build = format!("livechat_build_info{{version=\"{}\",", env!("CARGO_PKG_VERSION"));
    assert!(
        page.samples.keys().any(|sample| sample.starts_with(&build)),
        "{build}"
    );

    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs_f64();
    let started = page.value("process_start_time_seconds");
    assert!((now - 600.0..now + 5.0).contains(&started), "{started} {now}");
    let resident = page.value("process_resident_memory_bytes") / 1024.0;
    let shown = server.rss_kib() as f64;
    assert!(
        (shown / 2.0..shown * 2.0).contains(&resident),
        "{resident} KiB, not {shown}"
    );
    let cpu = page.value("process_cpu_seconds_total");
    assert!(cpu <= server.cpu_time().as_secs_f64() + 0.02, "{cpu}");
    let fds = server.fd_count() as f64;
    let counted = page.value("process_open_fds");
    assert!((counted - fds).abs() <= 8.0, "{counted} descriptors, not {fds}");
    assert!(page.value("process_max_fds") > counted);
    assert!(page.value("process_threads") >= 2.0);
}

#[test]
fn metrics_of_dependencies_exist_only_if_configured() {
    let embedded = Page::classic(&page(&server(), "text/plain").text());
    for name in ["livechat_kafka_up", "livechat_redis_up"] {
        assert!(!embedded.types.contains_key(name), "there is none: {name}");
    }
    let nowhere = Server::builder()
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .env("KAFKA_BROKERS", "127.0.0.1:1")
        .env("REDIS_URL", "redis://127.0.0.1:1")
        .start_listening();
    let degraded = Page::classic(&page(&nowhere, "text/plain").text());
    assert_eq!(degraded.value("livechat_kafka_up"), 0.0);
    assert_eq!(degraded.value("livechat_redis_up"), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_show_a_draining_node() {
    let server = Server::builder()
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .env("DRAIN_TIMEOUT", "40s")
        .start();
    // It does not answer the close, so that the drain takes its time.
    let _held = crate::support::RawWs::connect(&server, "s", "ann", "customer");
    server.signal("TERM");
    let mut seen = false;
    eventually("the drain is shown", || {
        seen |= server.metric("livechat_draining") == 1.0;
        seen
    });
    server.signal("KILL");
    server.wait_exit(Duration::from_secs(45));
}
