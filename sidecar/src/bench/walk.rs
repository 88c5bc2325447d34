//! A cold tree walked as `ls -lR` does, beside a raw listing of the origin.
//!
//! Invariant: both sides go directory by directory and find the same number of files, or the
//! measurement fails.

use std::time::Instant;

use super::halt::{Halt, Trouble};
use super::report::Row;
use super::session::Session;
use super::sign;
use super::target::Target;
use super::upload::between;
use super::wire::{Endpoint, Wire};

const TREE: &str = "tree";

/// The walk through one mount.
pub(crate) fn measure(session: &Session, target: &Target) -> Result<(), Trouble> {
    if !session.wants("walk") {
        return Ok(());
    }
    session.attempt(&format!("walk {}", target.name), || {
        let (folders, each) = session.scale.tree;
        let files = (folders * each) as u64;
        if !session.origin.plant(folders, each, &session.halt)? {
            return Err(Trouble::Failed("this origin keeps no plain files to plant".to_owned()));
        }
        let origin = &session.origin.endpoint;
        // Brings the directories into the origin's page cache.
        same(listing(origin, &session.halt)?.0, files)?;
        let (mut raw, mut walked) = (Vec::new(), Vec::new());
        for _ in 0..session.scale.repetitions {
            let (found, seconds) = listing(origin, &session.halt)?;
            same(found, files)?;
            raw.push(seconds);
            let running = session.start(target, origin)?;
            let taken = running.files().walk(TREE, &session.halt)?;
            same(taken.operations, files)?;
            walked.push(taken.seconds);
            session.peak(target.name, running.peak_bytes());
        }
        let row = Row::paired("walk", target.name, "s", &walked, ("origin", &raw));
        let note = format!("{files} files in {folders} folders");
        session.record(row.map(|row| row.lower_is_better().noted(note)));
        Ok(())
    })
}

fn same(found: u64, expected: u64) -> Result<(), Trouble> {
    if found == expected {
        return Ok(());
    }
    Err(Trouble::Failed(format!("{found} files of {expected} were found")))
}

/// Lists every directory of the tree, page by page; files and seconds.
fn listing(endpoint: &Endpoint, halt: &Halt) -> Result<(u64, f64), Trouble> {
    let begun = Instant::now();
    let mut wire = Wire::to(endpoint.address)?;
    let path = format!("/{}", endpoint.bucket);
    let mut folders = vec![format!("{TREE}/")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        let mut token: Option<String> = None;
        loop {
            halt.check()?;
            let after = token.as_ref().map_or(String::new(), |token| {
                format!("continuation-token={}&", sign::encode(token, false))
            });
            let prefix = sign::encode(&folder, false);
            let query = format!("{after}delimiter=%2F&list-type=2&prefix={prefix}");
            let (_, page) = wire.call(endpoint, "GET", &path, &query, b"")?;
            files += page.matches("<Key>").count() as u64;
            let below = page.split("<CommonPrefixes><Prefix>").skip(1);
            folders.extend(below.filter_map(|text| Some(text.split_once('<')?.0.to_owned())));
            let next = between(&page, "<NextContinuationToken>", "</NextContinuationToken>");
            token = next.map(str::to_owned);
            if token.is_none() {
                break;
            }
        }
    }
    Ok((files, begun.elapsed().as_secs_f64()))
}
