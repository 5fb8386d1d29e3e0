//! What wrong tokens cost everybody else: workload A with tokens, while forged ones arrive beside it.
//!
//! - [`guesser`]: sends them, and counts how they are refused

mod guesser;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use self::guesser::{From, Guesser, Plan};
use crate::message::publisher::Pace;
use crate::message::run::{Publish, Shape, Target, measure};
use crate::message::workload::{CUSTOMER, by_socket};
use crate::node::{Kind, Node, Programs};
use crate::report::{Column, Figures, Named as _, Report, column, progress};
use crate::template::Template;
use crate::timing::Timing;
use crate::tokens::Issuer;

const COLUMNS: [Column; 13] = [
    column("p50_ms", "p50, ms", 2),
    column("p99_ms", "p99, ms", 2),
    column("max_ms", "max, ms", 1),
    column("cpu_percent", "CPU, % of a core", 1),
    column("rss_mib", "RSS, MiB", 1),
    column("sent_percent", "sent, % of due", 0),
    column("lost", "lost", 0),
    column("doubled", "doubled", 0),
    column("wrong_per_s", "refused a second", 0),
    column("unauthorized_percent", "answered 401, %", 1),
    column("too_many_percent", "429, %", 1),
    column("refusal_p50_ms", "until refused p50, ms", 2),
    column("refusal_p99_ms", "p99, ms", 2),
];

/// Where the wrong tokens come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arm {
    /// There are none
    None,
    /// As many requests without a token, for comparison: answered by 401, with nothing to verify
    Missing,
    /// From --addresses addresses: beyond AUTH_FAILURES_PER_MINUTE they are answered by 429
    Few,
    /// Each from another address: all are answered by 401
    Many,
}

#[derive(Args, Clone)]
pub struct Options {
    #[command(flatten)]
    pub programs: Programs,
    #[arg(long, value_delimiter = ',', default_values = ["none", "missing", "few", "many"])]
    pub arms: Vec<Arm>,
    /// Wrong tokens a second
    #[arg(long, default_value_t = 1_000.0)]
    pub wrong: f64,
    /// How many addresses are few
    #[arg(long, default_value_t = 4)]
    pub addresses: u32,
    /// A connection for each wrong token, not a few that are kept, as between a proxy and the server
    #[arg(long)]
    pub reconnect: bool,
    /// Clients with good tokens
    #[arg(long, default_value_t = 1_000)]
    pub clients: usize,
    #[arg(long, default_value_t = 10)]
    pub sessions: usize,
    /// Messages a second, over all sessions
    #[arg(long, default_value_t = 200.0)]
    pub rate: f64,
    #[command(flatten)]
    pub timing: Timing,
}

/// Measures it.
///
/// # Errors
///
/// Something could not be started, or wrong tokens were not refused as they should be.
pub fn run(options: &Options) -> Result<Vec<Report>> {
    ensure!(
        options.wrong > 0.0 && options.addresses > 0,
        "no wrong tokens, or from nowhere"
    );
    let mut report = Report::new(
        format!(
            "{} wrong tokens a second beside {} clients of {} sessions, {} messages a second",
            options.wrong, options.clients, options.sessions, options.rate
        ),
        &COLUMNS,
    );
    for round in 0..options.timing.rounds {
        for &arm in &options.arms {
            let name = arm.name();
            let figures = one(options, arm).with_context(|| format!("wrong tokens, {name}"))?;
            progress(&format!(
                "wrong tokens, round {}: {name}: {:.2} ms p99, {:.1} % of a core",
                round + 1,
                figures["p99_ms"],
                figures["cpu_percent"]
            ));
            report.add(&name, figures);
        }
    }
    note(&mut report, options);
    Ok(vec![report])
}

/// What they add, round by round.
fn note(report: &mut Report, options: &Options) {
    let base = Arm::None.name();
    for arm in options.arms.iter().filter(|&&arm| arm != Arm::None) {
        let name = arm.name();
        let cpu = |arm: &str| report.median(arm, "cpu_percent");
        if let (Some(with), Some(without), Some(each), Some(ratio)) = (
            cpu(&name),
            cpu(&base),
            report.median(&name, "wrong_per_s"),
            report.ratio(&name, &base, "p99_ms"),
        ) {
            report.note(format!(
                "{name}: p99 {ratio:.2} times that without wrong tokens; {:.0} us of CPU for each of them",
                (with - without) * 1e4 / each
            ));
        }
    }
    report.note("The bus is the process's own. CPU is user and system time of the server's process.");
}

fn one(options: &Options, arm: Arm) -> Result<Figures> {
    let issuer = Issuer::hs256();
    // So that each request can say where it comes from.
    let settings = [issuer.setting(), ("TRUSTED_PROXIES", "127.0.0.1".to_owned())];
    let node = Node::start(&options.programs, Kind::EMBEDDED, &settings)?;
    let shape = Shape {
        sockets: options.clients,
        sessions: options.sessions,
        pace: Pace::Rate(options.rate),
        warmup: options.timing.warmup(),
        steady: options.timing.measured(),
        in_flight: 256,
        has_slow_reader: false,
    };
    let target = Target {
        addr: node.addr,
        pid: Some(node.process.pid()),
        path: Template::parse(CUSTOMER),
        issuer: Some(issuer),
        hello: Vec::new(),
    };
    let from = match arm {
        Arm::None => None,
        Arm::Few => Some(From::Few(options.addresses)),
        Arm::Missing | Arm::Many => Some(From::Many),
    };
    let guesser = from.map(|from| {
        Guesser::start(Plan {
            addr: node.addr,
            rate: options.wrong,
            from,
            is_forged: arm != Arm::Missing,
            is_kept: !options.reconnect,
        })
    });
    let mut figures = measure(&shape, &target, Publish::BySocket, &by_socket()?)?;
    // Of a core, not of a delivery: wrong tokens don't come with them.
    if let Some(us) = figures.remove("cpu_us") {
        figures.insert("cpu_percent", us * figures["deliveries_per_s"] / 1e4);
    }
    if let (Some(guesser), Some(from)) = (guesser, from) {
        let refused = guesser.finish()?;
        refused.check(from)?;
        figures.extend(refused.figures());
    }
    Ok(figures)
}
