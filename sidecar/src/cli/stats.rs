//! `warpdrive stats`: what a running sidecar is doing, for people.
//!
//! Invariant: it shows what `/status` says and adds nothing but rates between two looks.

mod page;

use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{self, Client};
use super::{StatsArgs, Stop, put, small_runtime};

/// Often enough to see a burst, seldom enough to read.
const EVERY: Duration = Duration::from_secs(1);

pub(super) fn stats(args: &StatsArgs) -> Result<(), Stop> {
    let (client, _) = client::find(&args.place)?;
    let Some(client) = client else {
        return Err(Stop::Unusable("the file has `admin.enabled: false`".to_owned()));
    };
    let runtime = small_runtime()?;
    runtime.block_on(async {
        tokio::select! {
            shown = show(&client, args) => shown,
            // The usual end of --watch.
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    })
}

async fn show(client: &Client, args: &StatsArgs) -> Result<(), Stop> {
    use std::io::IsTerminal;
    let clear = args.watch && !args.json && std::io::stdout().is_terminal();
    let mut before: Option<(Instant, Value)> = None;
    loop {
        let status: Value = client.get("/status").await?;
        let at = Instant::now();
        let text = if args.json {
            format!("{status}\n")
        } else {
            let since = before.as_ref().map(|(then, old)| (at - *then, old));
            page::page(&status, since)
        };
        if clear {
            // Cursor home, and everything after it erased.
            put("\x1b[H\x1b[2J");
        }
        put(&text);
        if !args.watch {
            return Ok(());
        }
        before = Some((at, status));
        tokio::time::sleep(EVERY).await;
    }
}

/// A rate or a time as a whole number; negative ones are zero.
#[allow(clippy::cast_sign_loss)] // not below zero
pub(super) fn whole(value: f64) -> u64 {
    value.max(0.0).round() as u64
}
