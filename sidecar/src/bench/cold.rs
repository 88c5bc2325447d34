//! First reads: how much of the origin's speed is left, and how much is asked of it.
//!
//! Invariant: every repetition starts with an empty cache, and the origin is read directly right before
//! it, through the same road.

use std::time::{Duration, Instant};

use super::catalogue::{CPU_PER_GIB, REQUESTS_PER_FILE};
use super::data::{Dice, Item};
use super::halt::{Halt, Trouble};
use super::link::{Link, Road};
use super::origin::joined;
use super::reads::Taken;
use super::report::Row;
use super::scale::{GIB, KIB, MIB};
use super::served::Served;
use super::session::Session;
use super::spread::Spread;
use super::target::{Running, Target};
use super::wire::{Endpoint, Wire};

/// What a region next door looks like.
pub(crate) const SLOW: Road =
    Road { latency: Duration::from_millis(20), bytes_per_second: Some(500 * MIB) };
/// How clients that are fast read a large object.
const PART_BYTES: u64 = 8 * MIB;
const PARTS_AT_ONCE: usize = 8;
/// Readers of one object.
const SHARING: usize = 8;
/// Small files that are read cold: enough for a rate.
const COLD_FILES: usize = 300;
/// Past which cold random reads of a slow program are cut off.
const COLD_TIME: Duration = Duration::from_secs(15);
const COLD_READ_BYTES: usize = 4096;

/// Reads an object in parallel ranges and throws it away.
pub(crate) fn ranges(endpoint: &Endpoint, item: &Item, halt: &Halt) -> Result<Taken, Trouble> {
    let offsets = std::sync::Mutex::new((0..item.size).step_by(PART_BYTES as usize));
    let path = endpoint.path(&item.key);
    let work = || -> Result<(), Trouble> {
        let mut wire = Wire::to(endpoint.address)?;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            halt.check()?;
            let next = offsets.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            let Some(start) = next else { return Ok(()) };
            let end = (start + PART_BYTES).min(item.size);
            let range = [("range", format!("bytes={start}-{}", end - 1))];
            let answer = wire.send(&endpoint.head("GET", &path, "", &range), b"")?;
            let got = wire.discard(&answer, &mut buffer)?;
            if answer.status != 206 || got != end - start {
                let status = answer.status;
                return Err(Trouble::Failed(format!("{path}: {status} with {got} bytes")));
            }
        }
    };
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..PARTS_AT_ONCE).map(|_| scope.spawn(work)).collect();
        readers.into_iter().try_for_each(|reader| joined(reader.join()))
    })?;
    Ok(Taken { operations: 1, bytes: item.size, seconds: begun.elapsed().as_secs_f64() })
}

/// The road of a workload and the origin behind it; the link lives as long as it is used.
fn road(session: &Session, slow: bool) -> Result<(Option<Link>, Endpoint), Trouble> {
    if !slow {
        return Ok((None, session.origin.endpoint.clone()));
    }
    let link = Link::start(session.origin.endpoint.address, SLOW)?;
    let endpoint = session.origin_at(link.address());
    Ok((Some(link), endpoint))
}

type Count = fn(&Session, &Target) -> Result<(), Trouble>;

/// Everything cold through a mount.
pub(crate) fn measure(session: &Session, target: &Target) -> Result<(), Trouble> {
    for (workload, slow) in [("seq-cold-slow", true), ("seq-cold", false)] {
        if session.wants(workload) {
            let what = format!("{workload} {}", target.name);
            session.attempt(&what, || sequential(session, target, workload, slow))?;
        }
    }
    let counts: [(&str, Count); 4] = [
        ("small-cold", small),
        ("rand-cold", random),
        ("shared-cold", shared),
        ("restart", restart),
    ];
    for (workload, count) in counts {
        if session.wants(workload) {
            session.attempt(&format!("{workload} {}", target.name), || count(session, target))?;
        }
    }
    Ok(())
}

fn sequential(
    session: &Session,
    target: &Target,
    workload: &str,
    slow: bool,
) -> Result<(), Trouble> {
    let (_link, origin) = road(session, slow)?;
    let (item, halt) = (&session.scale.big, &session.halt);
    // Brings the object into the origin's page cache.
    ranges(&session.origin.endpoint, item, halt)?;
    let (mut direct, mut mount, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..session.scale.repetitions {
        direct.push(ranges(&origin, item, halt)?.mib_per_second());
        let running = session.start(target, &origin)?;
        let before = running.cpu();
        let taken = running.files().sequential(item, halt)?;
        cpu.push(running.cpu().since(before) / (taken.bytes as f64 / GIB as f64));
        mount.push(taken.mib_per_second());
        session.peak(target.name, running.peak_bytes());
    }
    let row = Row::paired(workload, target.name, "MiB/s", &mount, ("origin", &direct));
    session.record(row.map(|row| row.with(CPU_PER_GIB, &cpu)));
    Ok(())
}

/// A target behind a link that counts.
fn counted<'a>(session: &'a Session, target: &Target) -> Result<(Link, Running<'a>), Trouble> {
    let link = Link::start(session.origin.endpoint.address, Road::default())?;
    let running = session.start(target, &session.origin_at(link.address()))?;
    Ok((link, running))
}

fn small(session: &Session, target: &Target) -> Result<(), Trouble> {
    let halt = &session.halt;
    let mut items = session.scale.small.clone();
    // In the order of a listing a program may guess what comes next; a trainer's order is shuffled.
    Dice::new(11).shuffle(&mut items);
    items.truncate(COLD_FILES);
    let (mut direct, mut mount, mut requests) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..session.scale.repetitions {
        let (link, running) = counted(session, target)?;
        direct.push(gets(&session.origin_at(link.address()), &items, halt)?.per_second());
        let before = link.requests();
        mount.push(running.files().each(&items, halt)?.per_second());
        // What a program fetches after the reader has gone is asked of the origin all the same.
        halt.sleep(Duration::from_millis(300))?;
        requests.push((link.requests() - before) as f64 / items.len() as f64);
        session.peak(target.name, running.peak_bytes());
    }
    let row = Row::paired("small-cold", target.name, "files/s", &mount, ("origin", &direct));
    session.record(row.map(|row| row.with(REQUESTS_PER_FILE, &requests)));
    Ok(())
}

/// GETs of whole objects, one after the other.
pub(crate) fn gets(endpoint: &Endpoint, items: &[Item], halt: &Halt) -> Result<Taken, Trouble> {
    let mut buffer = vec![0; 256 * 1024];
    let begun = Instant::now();
    let mut wire = Wire::to(endpoint.address)?;
    let mut taken = Taken::default();
    for item in items {
        halt.check()?;
        let answer = wire.send(&endpoint.head("GET", &endpoint.path(&item.key), "", &[]), b"")?;
        let got = wire.discard(&answer, &mut buffer)?;
        if answer.status != 200 || got != item.size {
            let status = answer.status;
            return Err(Trouble::Failed(format!("{}: {status} with {got} bytes", item.key)));
        }
        taken.operations += 1;
        taken.bytes += got;
    }
    taken.seconds = begun.elapsed().as_secs_f64();
    Ok(taken)
}

fn random(session: &Session, target: &Target) -> Result<(), Trouble> {
    let (halt, reads) = (&session.halt, session.scale.cold_reads as u64);
    let (mut fetched, mut millis) = (Vec::new(), Vec::new());
    for round in 0..session.scale.repetitions as u64 {
        let (link, running) = counted(session, target)?;
        let files = running.files();
        // Names and attributes are not what is counted.
        std::fs::metadata(files.path(&session.scale.big)).map_err(|e| e.to_string())?;
        let before = link.bytes();
        let limits = (COLD_TIME, reads);
        let taken = files.random(&session.scale.big, COLD_READ_BYTES, limits, round + 1, halt)?;
        halt.sleep(Duration::from_millis(300))?;
        fetched.push((link.bytes() - before) as f64 / KIB as f64 / taken.operations as f64);
        millis.push(taken.seconds * 1000.0 / taken.operations as f64);
        session.peak(target.name, running.peak_bytes());
    }
    let row = Spread::of(&fetched)
        .map(|value| Row::new("rand-cold", target.name, "KiB fetched/read", value));
    session.record(row.map(|row| row.lower_is_better().with("ms/read", &millis)));
    Ok(())
}

fn shared(session: &Session, target: &Target) -> Result<(), Trouble> {
    let (item, halt) = (&session.scale.big, &session.halt);
    let mut ratios = Vec::new();
    let mut note = String::new();
    for _ in 0..session.scale.repetitions {
        let (link, running) = counted(session, target)?;
        let before = link.bytes();
        let files = running.files();
        let s3 = running.own().map(|own| Endpoint {
            address: own.s3,
            key: None,
            bucket: session.origin.endpoint.bucket.clone(),
        });
        let by_s3 = if s3.is_some() { SHARING / 2 } else { 0 };
        note = format!("{} through the mount, {by_s3} through S3", SHARING - by_s3);
        std::thread::scope(|scope| {
            let mut readers = Vec::new();
            for _ in by_s3..SHARING {
                readers.push(scope.spawn(|| files.sequential(item, halt)));
            }
            for endpoint in s3.iter().flat_map(|s3| std::iter::repeat_n(s3, by_s3)) {
                readers.push(scope.spawn(|| ranges(endpoint, item, halt)));
            }
            readers.into_iter().map(|r| joined(r.join())).collect::<Result<Vec<_>, Trouble>>()
        })?;
        ratios.push((link.bytes() - before) as f64 / item.size as f64);
        session.peak(target.name, running.peak_bytes());
    }
    let row = Spread::of(&ratios)
        .map(|value| Row::new("shared-cold", target.name, "bytes asked/unique", value));
    session.record(row.map(|row| row.lower_is_better().noted(note)));
    Ok(())
}

fn restart(session: &Session, target: &Target) -> Result<(), Trouble> {
    let halt = &session.halt;
    let (link, mut running) = counted(session, target)?;
    let items = session.scale.files();
    let bytes = running.files().verify(&session.plain, &items, halt)?;
    halt.sleep(Duration::from_millis(1500))?;
    session.peak(target.name, running.peak_bytes());
    let begun = Instant::now();
    running.restart(halt)?;
    let seconds = begun.elapsed().as_secs_f64();
    let before = link.bytes();
    running.files().verify(&session.plain, &items, halt)?;
    let again = (link.bytes() - before) as f64 / bytes as f64;
    let row = Spread::of(&[again])
        .map(|value| Row::new("restart", target.name, "share fetched again", value));
    session.record(row.map(|row| row.lower_is_better().with("end and start s", &[seconds])));
    Ok(())
}

/// Cold through this program's S3 endpoint.
pub(crate) fn measure_endpoint(session: &Session) -> Result<(), Trouble> {
    for (workload, slow) in [("s3-cold-slow", true), ("s3-cold", false)] {
        if session.wants(workload) {
            session.attempt(&format!("{workload} s3"), || endpoint(session, workload, slow))?;
        }
    }
    Ok(())
}

fn endpoint(session: &Session, workload: &str, slow: bool) -> Result<(), Trouble> {
    let (_link, origin) = road(session, slow)?;
    let (item, halt) = (&session.scale.big, &session.halt);
    ranges(&session.origin.endpoint, item, halt)?;
    let (mut direct, mut through, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..session.scale.repetitions {
        direct.push(ranges(&origin, item, halt)?.mib_per_second());
        let served = Served::start(session, &session.wish(&origin))?;
        let before = served.cpu();
        let taken = ranges(&served.endpoint(), item, halt)?;
        cpu.push(served.cpu().since(before) / (taken.bytes as f64 / GIB as f64));
        through.push(taken.mib_per_second());
    }
    let row = Row::paired(workload, "s3", "MiB/s", &through, ("origin", &direct));
    session.record(row.map(|row| row.with(CPU_PER_GIB, &cpu)));
    Ok(())
}
