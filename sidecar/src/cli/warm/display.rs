//! Progress: a bar on a terminal, a line now and then elsewhere, nothing with `--json`.
//!
//! Invariant: it writes to standard error only; standard output is the report.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::stats::whole;
use crate::config::about;
use crate::warm::ProgressNow;

/// A log of a long job stays readable.
const LINE_EVERY: Duration = Duration::from_secs(5);

pub(super) enum Display {
    Silent,
    Bar(ProgressBar),
    Lines { begun: Instant, last: Cell<Instant> },
}

impl Display {
    pub(super) fn new(silent: bool) -> Self {
        if silent {
            return Self::Silent;
        }
        if !std::io::stderr().is_terminal() {
            let now = Instant::now();
            return Self::Lines { begun: now, last: Cell::new(now) };
        }
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template(
            "{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta} {msg}",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self::Bar(bar)
    }

    /// One line about what is going on.
    pub(super) fn say(&self, line: &str) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => bar.println(line),
            Self::Lines { .. } => eprintln!("{line}"),
        }
    }

    pub(super) fn show(&self, now: &ProgressNow) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => {
                bar.set_length(now.listed_bytes);
                bar.set_position(now.done_bytes);
                let more = if now.listing { "+" } else { "" };
                bar.set_message(format!(
                    "{}/{}{more} objects",
                    now.done_objects, now.listed_objects
                ));
            }
            Self::Lines { begun, last } => {
                if last.get().elapsed() >= LINE_EVERY {
                    last.set(Instant::now());
                    eprintln!("{}", line(now, begun.elapsed()));
                }
            }
        }
    }

    pub(super) fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn line(now: &ProgressNow, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64().max(0.001);
    let rate = now.done_bytes as f64 / seconds;
    let more = if now.listing { " so far" } else { "" };
    let left = now.listed_bytes.saturating_sub(now.done_bytes) as f64;
    let eta = if now.listing || rate < 1.0 {
        String::new()
    } else {
        format!(", {:.0} s left", left / rate)
    };
    format!(
        "{} of {} objects{more}, {} of {}, {}/s{eta}",
        now.done_objects,
        now.listed_objects,
        about(now.done_bytes),
        about(now.listed_bytes),
        about(whole(rate)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_rate_and_time_left() {
        let now = ProgressNow {
            listed_objects: 4,
            listed_bytes: 4 << 20,
            done_objects: 1,
            done_bytes: 1 << 20,
            ..ProgressNow::default()
        };
        assert_eq!(
            line(&now, Duration::from_secs(1)),
            "1 of 4 objects, 1.0 MiB of 4.0 MiB, 1.0 MiB/s, 3 s left"
        );
    }
}
