//! Shuffled epochs through a cache that holds half of the data.
//!
//! Invariant: the hit rate is counted at the origin, from the second epoch on, and is given as a share
//! of the optimum, which is the share of the data that the cache may hold.

use super::cold;
use super::data::Dice;
use super::halt::Trouble;
use super::link::{Link, Road};
use super::own::Wish;
use super::report::Row;
use super::scale::MIB;
use super::served::Served;
use super::session::Session;
use super::spread::Spread;
use super::target::{Kind, Target};

/// The smallest that the sidecar takes: what memory holds beside the disk flatters the hit rate.
const MEMORY_BYTES: u64 = 16 * MIB;

fn wish(session: &Session, link: &Link) -> Wish {
    let bytes: u64 = session.scale.shuffled.iter().map(|item| item.size).sum();
    Wish {
        origin: session.origin_at(link.address()),
        cache_bytes: bytes / 2,
        memory_bytes: MEMORY_BYTES,
    }
}

/// Runs the epochs; the hit rates from the second on, over the optimum.
fn run(
    session: &Session,
    link: &Link,
    mut read: impl FnMut(&[super::data::Item]) -> Result<(), Trouble>,
) -> Result<Vec<f64>, Trouble> {
    let mut items = session.scale.shuffled.clone();
    let bytes: u64 = items.iter().map(|item| item.size).sum();
    let mut dice = Dice::new(5);
    let mut shares = Vec::new();
    for epoch in 0..session.scale.epochs {
        dice.shuffle(&mut items);
        let before = link.bytes();
        read(&items)?;
        let missed = (link.bytes() - before) as f64 / bytes as f64;
        if epoch > 0 {
            // The optimum of a cache of half the data.
            shares.push((1.0 - missed) / 0.5);
        }
    }
    Ok(shares)
}

fn record(session: &Session, workload: &str, target: &str, shares: &[f64]) {
    let row =
        Spread::of(shares).map(|value| Row::new(workload, target, "hit rate / optimum", value));
    // Some programs look at their bound only now and then.
    let more = shares.iter().any(|share| *share > 1.1);
    let note = if more { "its cache held more than it was told to" } else { "" };
    session.record(row.map(|row| row.noted("samples are epochs, from the second on").noted(note)));
}

/// Through a mount.
pub(crate) fn measure(session: &Session, target: &Target) -> Result<(), Trouble> {
    if !session.wants("epochs") {
        return Ok(());
    }
    if let Kind::Peer(recipe, _) = &target.kind
        && !recipe.bounded
    {
        session.skip(&format!("epochs {}", target.name), "its disk cache has no bound to set");
        return Ok(());
    }
    session.attempt(&format!("epochs {}", target.name), || {
        let link = Link::start(session.origin.endpoint.address, Road::default())?;
        let plain = &session.plain.root;
        let running = target.start(&session.place, &wish(session, &link), plain, &session.halt)?;
        session.describe_mount(target, &running);
        let files = running.files();
        let shares = run(session, &link, |items| {
            files.each(items, &session.halt)?;
            // The kernel's pages would make the cache larger than it is.
            files.forget(items)
        })?;
        record(session, "epochs", target.name, &shares);
        Ok(())
    })
}

/// Through S3.
pub(crate) fn measure_endpoint(session: &Session) -> Result<(), Trouble> {
    if !session.wants("s3-epochs") {
        return Ok(());
    }
    session.attempt("s3-epochs s3", || {
        let link = Link::start(session.origin.endpoint.address, Road::default())?;
        let served = Served::start(session, &wish(session, &link))?;
        let shares = run(session, &link, |items| {
            cold::gets(&served.endpoint(), items, &session.halt).map(|_| ())
        })?;
        record(session, "s3-epochs", "s3", &shares);
        Ok(())
    })
}
