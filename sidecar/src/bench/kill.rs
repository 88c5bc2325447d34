//! `kill -9` of the worker while readers verify every byte.
//!
//! Invariant: a read that fails, or that returns another byte than the plain copy has, is counted and
//! reported; a pause is the longest that one open, read or close took.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::catalogue::{ERRORS, KEPT, WRONG};
use super::data::Dice;
use super::halt::{During, Halt, Trouble};
use super::link::{Link, Road};
use super::reads::Files;
use super::report::Row;
use super::scale::Scale;
use super::session::Session;
use super::spread::Spread;
use super::target::{Running, Target};
use super::warm;

const READERS: u64 = 4;
const READ_BYTES: usize = 128 * 1024;
/// Between two kills, and before the first.
const BETWEEN: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Seen {
    reads: AtomicU64,
    errors: AtomicU64,
    wrong: AtomicU64,
    longest_micros: AtomicU64,
    stop: AtomicBool,
}

/// Kills the worker of this program's mount a few times.
pub(crate) fn measure(session: &Session, target: &Target) -> Result<(), Trouble> {
    if !session.wants("kill") || !target.is_own() {
        return Ok(());
    }
    session.attempt(&format!("kill {}", target.name), || {
        let link = Link::start(session.origin.endpoint.address, Road::default())?;
        let mut running = session.start(target, &session.origin_at(link.address()))?;
        warm::fill(session, target, &running)?;
        let before = link.bytes();
        let (mount, plain) = (running.files(), &session.plain);
        let (scale, halt, seen) = (&session.scale, &session.halt, Seen::default());
        let first_error = std::sync::Mutex::new(None);
        let killed = std::thread::scope(|scope| {
            for reader in 0..READERS {
                let (mount, seen, first_error) = (&mount, &seen, &first_error);
                scope.spawn(move || {
                    if let Err(error) = read(mount, plain, scale, reader, seen) {
                        let mut first =
                            first_error.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        first.get_or_insert(error);
                    }
                });
            }
            let killed = kill(session, target, &mut running, halt, &seen);
            seen.stop.store(true, Relaxed);
            killed
        });
        let killed = killed?;
        // What had to be fetched again although it was there before.
        let bytes: u64 = scale.files().iter().map(|item| item.size).sum();
        mount.forget(&scale.files())?;
        mount.verify(plain, &scale.files(), halt)?;
        let kept = 1.0 - (link.bytes() - before) as f64 / bytes as f64;
        let longest = seen.longest_micros.load(Relaxed) as f64 / 1e6;
        let row = Spread::of(&[longest])
            .map(|value| Row::new("kill", target.name, "longest pause s", value).lower_is_better());
        let row = row.map(|row| {
            row.with(ERRORS, &[seen.errors.load(Relaxed) as f64])
                .with(WRONG, &[seen.wrong.load(Relaxed) as f64])
                .with(KEPT, &[kept.max(0.0)])
                .noted(format!(
                    "{killed} kills, {} verified reads, {}",
                    seen.reads.load(Relaxed),
                    if target.supervised {
                        "restarted by its supervisor"
                    } else {
                        "restarted by the bench"
                    }
                ))
                .noted(first_error.into_inner().ok().flatten().unwrap_or_default())
        });
        session.record(row);
        Ok(())
    })
}

/// Kills, and starts the worker again where no supervisor does. How often it was killed.
fn kill(
    session: &Session,
    target: &Target,
    running: &mut Running<'_>,
    halt: &Halt,
    seen: &Seen,
) -> Result<usize, Trouble> {
    for round in 0..session.scale.kills {
        halt.sleep(BETWEEN)?;
        let before = seen.reads.load(Relaxed);
        let own = running.own_mut().ok_or_else(|| "no worker to kill".to_owned())?;
        let worker = own.worker()?;
        if let Some(pid) = Pid::from_raw(worker.cast_signed()) {
            kill_process(pid, Signal::KILL).during("kill -9")?;
        }
        if target.supervised {
            halt.wait_for("no new worker", Duration::from_secs(30), || {
                Ok(own.worker().is_ok_and(|now| now != worker))
            })?;
        } else {
            own.process.kill();
            own.start_again(&session.place, halt)?;
        }
        halt.wait_for("no read after a kill", Duration::from_mins(1), || {
            Ok(seen.reads.load(Relaxed) > before || seen.errors.load(Relaxed) > 0)
        })?;
        session.say(&format!("kill {} of {}", round + 1, session.scale.kills));
    }
    halt.sleep(BETWEEN)?;
    Ok(session.scale.kills)
}

/// Reads at random until told to stop; the first error in words.
fn read(
    mount: &Files,
    plain: &Files,
    scale: &Scale,
    reader: u64,
    seen: &Seen,
) -> Result<(), String> {
    let mut dice = Dice::new(reader + 100);
    let (mut here, mut there) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
    let (mut first_error, items) = (None, scale.files());
    while !seen.stop.load(Relaxed) {
        let item = &items[dice.below(items.len() as u64) as usize];
        let offset = dice.below(item.size / READ_BYTES as u64) * READ_BYTES as u64;
        let begun = Instant::now();
        let read = File::open(mount.path(item)).and_then(|file| {
            // Pages that the kernel kept would not be asked of anyone.
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            file.read_exact_at(&mut here, offset)
        });
        let micros = begun.elapsed().as_micros() as u64;
        seen.longest_micros.fetch_max(micros, Relaxed);
        match read {
            Ok(()) => {
                let copy = File::open(plain.path(item))
                    .and_then(|file| file.read_exact_at(&mut there, offset));
                let differ = here.iter().zip(&there).filter(|(a, b)| a != b).count();
                if copy.is_ok() {
                    seen.wrong.fetch_add(differ as u64, Relaxed);
                }
                seen.reads.fetch_add(1, Relaxed);
            }
            Err(error) => {
                seen.errors.fetch_add(1, Relaxed);
                first_error.get_or_insert(format!("{}: {error}", item.key));
                // A mount that is gone would be asked a million times.
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    first_error.map_or(Ok(()), Err)
}
