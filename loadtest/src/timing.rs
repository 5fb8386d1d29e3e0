//! How often and how long messages are measured.

use std::time::Duration;

use clap::Args;

#[derive(Args, Clone, Copy)]
pub struct Timing {
    /// How often each arm is measured; the arms alternate
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Seconds before the measured part
    #[arg(long, default_value_t = 2.0)]
    pub warmup: f64,
    /// Seconds that are measured
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
}

impl Timing {
    pub fn warmup(&self) -> Duration {
        Duration::from_secs_f64(self.warmup)
    }

    pub fn measured(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}
