//! Process metrics, read from the kernel at each scrape; names and units follow Prometheus' conventions.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::config::descriptor_limit;
use crate::logging;

#[derive(Debug)]
pub struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut show = |name: &str, help: &str, metric: &dyn EncodeMetric| {
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        show(
            "livechat_log_lines_lost",
            "Log lines lost because they were not read fast enough or could not be written",
            &ConstCounter::new(logging::lost_lines()),
        )?;
        show(
            "process_max_fds",
            "Maximum number of open file descriptors",
            &ConstGauge::new(descriptor_limit() as f64),
        )?;
        let Some(usage) = Usage::read() else { return Ok(()) };
        show(
            "process_cpu_seconds",
            "Total user and system CPU time spent in seconds",
            &ConstCounter::new(usage.cpu_seconds),
        )?;
        for (name, help, value) in [
            (
                "process_start_time_seconds",
                "Start time of the process since the Unix epoch in seconds",
                usage.start_time_seconds,
            ),
            (
                "process_resident_memory_bytes",
                "Resident memory size in bytes",
                usage.resident_bytes,
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes",
                usage.virtual_bytes,
            ),
            (
                "process_open_fds",
                "Number of open file descriptors",
                usage.open_fds,
            ),
            ("process_threads", "Number of OS threads", usage.threads),
        ] {
            show(name, help, &ConstGauge::new(value))?;
        }
        Ok(())
    }
}

/// Values read from /proc.
struct Usage {
    cpu_seconds: f64,
    start_time_seconds: f64,
    resident_bytes: f64,
    virtual_bytes: f64,
    open_fds: f64,
    threads: f64,
}

impl Usage {
    #[cfg(target_os = "linux")]
    fn read() -> Option<Self> {
        let process = procfs::process::Process::myself().ok()?;
        let stat = process.stat().ok()?;
        let ticks = procfs::ticks_per_second() as f64;
        Some(Self {
            cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
            start_time_seconds: procfs::boot_time_secs().ok()? as f64 + stat.starttime as f64 / ticks,
            resident_bytes: (stat.rss * procfs::page_size()) as f64,
            virtual_bytes: stat.vsize as f64,
            open_fds: process.fd_count().ok()? as f64,
            threads: stat.num_threads as f64,
        })
    }

    /// Other systems have no /proc.
    #[cfg(not(target_os = "linux"))]
    fn read() -> Option<Self> {
        None
    }
}
