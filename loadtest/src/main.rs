//! The load generator: `livechat-loadtest --help`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use livechat_loadtest::message::workload;
use livechat_loadtest::report::{self, Report};
use livechat_loadtest::{foreign, idle, presence, remote, resume, scale, targets, wrong_tokens};

#[derive(Parser)]
#[command(
    about = "Measures livechat-ws against a bare send loop, and other servers",
    version
)]
struct Cli {
    /// Writes every round's figures to this file, too
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Subcommand)]
enum Workload {
    /// A to F, and the target ratios
    All(targets::Options),
    /// A, B and C: messages to many sockets
    Messages(workload::Options),
    /// D: connections that do nothing
    Idle(idle::Options),
    /// E, and what presence costs: connect storms, a large session, the flush window
    #[command(subcommand)]
    Presence(presence::Command),
    /// F: clients come back to another node, all at once, and get what they have missed
    Resume(resume::Options),
    /// Wrong tokens beside clients with good ones: what they cost the others
    WrongTokens(wrong_tokens::Options),
    /// Records of sessions that the node does not have: the cost of reading everything
    Foreign(foreign::Options),
    /// Computes nodes, network and memory from measured costs, for clusters larger than this machine
    Scale(scale::Options),
    /// Messages over another server
    Remote(remote::Options),
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    // Each client is a descriptor.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let reports: Vec<Report> = match &cli.workload {
        Workload::All(options) => targets::run(options)?,
        Workload::Messages(options) => workload::run(options)?,
        Workload::Idle(options) => idle::run(options)?,
        Workload::Presence(command) => presence::run(command)?,
        Workload::Resume(options) => resume::run(options)?,
        Workload::WrongTokens(options) => wrong_tokens::run(options)?,
        Workload::Foreign(options) => foreign::run(options)?,
        Workload::Scale(options) => scale::run(options)?,
        Workload::Remote(options) => remote::run(options)?,
    };
    for report in &reports {
        println!("{}", report.table());
    }
    print!("{}", targets::table(&reports));
    if let Some(path) = &cli.json {
        report::write_json(path, &reports)?;
    }
    let has_faults = targets::faults(&reports).is_some_and(|faults| faults > 0.0);
    if has_faults {
        eprintln!("messages were lost or doubled: see the tables");
    }
    Ok(if has_faults {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
