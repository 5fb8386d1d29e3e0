//! End-to-end tests of the built binary as a process, over its sockets; `support` has the helpers.
//!
//! Names begin with what they need: `kafka_…`, `redis_…` and `services_…` start a broker or Redis, everything else is
//! embedded.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails where it panics"
)]

mod support;

mod addresses;
mod auth_canary;
mod auth_cursors;
mod auth_expiry;
mod auth_hardening;
mod auth_keys;
mod auth_refusals;
mod auth_table;
mod chat_frames;
mod chat_json;
mod chat_text;
mod chat_typing;
mod config;
mod config_sources;
mod dedup;
mod disconnect;
mod fanout_io;
mod frame_watcher;
mod handshake;
mod handshake_early;
mod handshake_headers;
mod handshake_order;
mod http_cors;
mod http_framing;
mod http_hostile;
mod http_keep_alive;
mod http_routes;
mod ids;
mod joining;
mod limits;
mod limits_per_user;
mod lobby_watcher;
mod logging;
mod messages;
mod metrics;
mod presence;
mod presence_embedded;
mod presence_grace;
mod presence_lobby;
mod presence_model;
mod presence_notifications;
mod presence_proxy;
mod presence_script;
mod presence_status;
mod presence_watcher;
mod proxy_protocol;
mod publish;
mod receipts;
mod resume;
mod scale;
mod shutdown;
mod signals;
mod slow;
mod slow_links;
mod slow_others;
mod specification;
mod structure;
mod ws_fuzz;
mod ws_protocol;

mod demo;
mod deploy;
mod docs;
mod kafka_ahead;
mod kafka_backend;
mod kafka_cluster;
mod kafka_dedup;
mod kafka_delivery;
mod kafka_faults;
mod kafka_health;
mod kafka_large;
mod kafka_messages;
mod kafka_older;
mod kafka_poison;
mod kafka_producers;
mod kafka_records;
mod kafka_refused_at_start;
mod kafka_resume;
mod kafka_resume_chaos;
mod kafka_shutdown;
mod kafka_topics;
mod redis_causes;
mod redis_churn;
mod redis_cluster;
mod redis_damage;
mod redis_disconnect;
mod redis_faults;
mod redis_grace;
mod redis_heartbeat;
mod redis_index_script;
mod redis_lobby;
mod redis_lobby_churn;
mod redis_long_list;
mod redis_presence;
mod redis_reaping;
mod redis_refusals;
mod redis_script;
mod redis_secret;
mod redis_storm;
mod redis_two_nodes;
mod services;
mod services_ids;
mod services_receipts;
