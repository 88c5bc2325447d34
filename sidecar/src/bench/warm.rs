//! Warm reads through a mount, beside the plain copy.
//!
//! Invariant: warm means that the cache holds every byte, the kernel keeps no page of the mount's own
//! files, and what the program reads from lies in the page cache; the plain copy lies there too. Every
//! byte was compared with the plain copy before.

use std::time::Duration;

use super::catalogue::CPU_PER_GIB;
use super::data::Item;
use super::halt::{Halt, Trouble};
use super::own::Own;
use super::reads::{Files, Taken};
use super::report::Row;
use super::scale::{GIB, Scale};
use super::session::Session;
use super::target::{Running, Target};

/// For what a cache does after a read has ended: writing, renaming, registering.
const SETTLE: Duration = Duration::from_millis(1500);

type Read = fn(&Files, &Scale, u64, &Halt) -> Result<Taken, Trouble>;

struct Warm {
    name: &'static str,
    unit: &'static str,
    figure: fn(Taken) -> f64,
    items: fn(&Scale) -> Vec<Item>,
    read: Read,
}

const fn warm(
    name: &'static str,
    unit: &'static str,
    figure: fn(Taken) -> f64,
    items: fn(&Scale) -> Vec<Item>,
    read: Read,
) -> Warm {
    Warm { name, unit, figure, items, read }
}

fn big(scale: &Scale) -> Vec<Item> {
    vec![scale.big.clone()]
}

fn random(
    files: &Files,
    scale: &Scale,
    block: usize,
    seed: u64,
    halt: &Halt,
) -> Result<Taken, Trouble> {
    files.random(&scale.big, block, (scale.slice, u64::MAX), seed, halt)
}

static ALL: &[Warm] = &[
    warm("seq-warm", "MiB/s", Taken::mib_per_second, big, |f, s, _, h| f.sequential(&s.big, h)),
    warm("rand-4k", "reads/s", Taken::per_second, big, |f, s, n, h| random(f, s, 4096, n, h)),
    warm("rand-128k", "MiB/s", Taken::mib_per_second, big, |f, s, n, h| {
        random(f, s, 128 << 10, n, h)
    }),
    warm("rand-1m", "MiB/s", Taken::mib_per_second, big, |f, s, n, h| random(f, s, 1 << 20, n, h)),
    warm(
        "readers-16",
        "MiB/s",
        Taken::mib_per_second,
        |s| s.many.clone(),
        |f, s, _, h| f.together(&s.many, h),
    ),
    warm(
        "small-warm",
        "files/s",
        Taken::per_second,
        |s| s.small.clone(),
        |f, s, _, h| f.each(&s.small, h),
    ),
    warm("mmap-seq", "MiB/s", Taken::mib_per_second, big, |f, s, _, h| f.mapped(&s.big, h)),
    warm("mmap-rand", "reads/s", Taken::per_second, big, |f, s, n, h| {
        f.mapped_random(&s.big, s.slice, n, h)
    }),
];

/// Fills the target, then measures what is wanted.
pub(crate) fn measure(session: &Session, target: &Target) -> Result<(), Trouble> {
    let wanted: Vec<&Warm> = ALL.iter().filter(|one| session.wants(one.name)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    session.attempt(&format!("warm reads of {}", target.name), || {
        let running = session.start(target, &session.origin.endpoint)?;
        fill(session, target, &running)?;
        for one in wanted {
            let what = format!("{} {}", one.name, target.name);
            session.attempt(&what, || compare(session, target, &running, one))?;
        }
        let metrics = running.own().map(Own::metrics).transpose()?;
        if let Some(note) = metrics.and_then(|metrics| opens(&metrics)) {
            session.note(target.name, note);
        }
        session.peak(target.name, running.peak_bytes());
        Ok(())
    })
}

/// Reads everything twice: the first time each byte is compared with the plain copy.
pub(crate) fn fill(
    session: &Session,
    target: &Target,
    running: &Running<'_>,
) -> Result<(), Trouble> {
    session.say(&format!("filling the cache of {}", target.name));
    let (files, items, halt) = (running.files(), session.scale.files(), &session.halt);
    files.verify(&session.plain, &items, halt)?;
    halt.sleep(SETTLE)?;
    files.forget(&items)?;
    files.each(&session.scale.small, halt)?;
    for item in &items {
        files.sequential(item, halt)?;
    }
    halt.sleep(SETTLE / 3)
}

fn compare(
    session: &Session,
    target: &Target,
    running: &Running<'_>,
    one: &Warm,
) -> Result<(), Trouble> {
    let (scale, halt) = (&session.scale, &session.halt);
    let (items, mount) = ((one.items)(scale), running.files());
    if !session.quick {
        // The first pass pays for what only a first pass does.
        (one.read)(&session.plain, scale, 0, halt)?;
        mount.forget(&items)?;
        (one.read)(&mount, scale, 0, halt)?;
    }
    let (mut there, mut here, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..scale.repetitions as u64 {
        let order = |pass: usize| round * 1000 + pass as u64 + 1;
        let taken = passes(scale, |pass| (one.read)(&session.plain, scale, order(pass), halt))?;
        there.push((one.figure)(taken));
        let before = running.cpu();
        let taken = passes(scale, |pass| {
            mount.forget(&items)?;
            (one.read)(&mount, scale, order(pass), halt)
        })?;
        cpu.push(running.cpu().since(before) / (taken.bytes as f64 / GIB as f64));
        here.push((one.figure)(taken));
    }
    let row = Row::paired(one.name, target.name, one.unit, &here, ("plain", &there));
    session.record(row.map(|row| row.with(CPU_PER_GIB, &cpu)));
    Ok(())
}

/// Reads again until a slice of time is used, at least once; only the reading is timed.
fn passes(
    scale: &Scale,
    mut read: impl FnMut(usize) -> Result<Taken, Trouble>,
) -> Result<Taken, Trouble> {
    let mut all = Taken::default();
    for pass in 0.. {
        let taken = read(pass)?;
        all.operations += taken.operations;
        all.bytes += taken.bytes;
        all.seconds += taken.seconds;
        if all.seconds >= scale.slice.as_secs_f64() {
            break;
        }
    }
    all.plausible()
}

/// How many opens were served in which way and why, as the sidecar counts them.
fn opens(metrics: &str) -> Option<String> {
    let line = |line: &str| {
        let rest = line.strip_prefix("warpdrive_fuse_opens_total{")?;
        let (labels, count) = rest.split_once("} ")?;
        let values: Vec<&str> = labels.split('"').skip(1).step_by(2).collect();
        Some(format!("{} {count}", values.join("/")))
    };
    let all: Vec<String> = metrics.lines().filter_map(line).collect();
    (!all.is_empty()).then(|| format!("opens: {}", all.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_are_told_by_their_mode_and_reason() {
        let text = "# TYPE warpdrive_fuse_opens_total counter\n\
            warpdrive_fuse_opens_total{mode=\"cached\",reason=\"incomplete\"} 3\n\
            warpdrive_fuse_opens_total{mode=\"passthrough\",reason=\"kept\"} 8\nother 1\n";
        let expected = "opens: cached/incomplete 3, passthrough/kept 8";
        assert_eq!(opens(text).as_deref(), Some(expected));
        assert_eq!(opens("other 1\n"), None);
    }

    #[test]
    fn a_slice_is_filled_with_whole_passes() {
        let scale = Scale { slice: Duration::from_secs(1), ..Scale::quick() };
        let one = Taken { operations: 2, bytes: 10, seconds: 0.4 };
        let all = passes(&scale, |_| Ok(one)).unwrap();
        assert_eq!((all.operations, all.bytes), (6, 30));
        let long = Taken { seconds: 3.0, ..one };
        assert_eq!(passes(&scale, |_| Ok(long)).unwrap().operations, 2);
        // Reads that were left out are no figure.
        let nothing = Taken { bytes: u64::MAX / 4, ..long };
        assert!(passes(&scale, |_| Ok(nothing)).is_err());
    }
}
