//! This program's S3 endpoint as a target, without a mount.
//!
//! Invariant: one that is dropped has no process and no folder left, and its peak memory is written down.

use super::halt::Trouble;
use super::own::{Mode, Own, Wish};
use super::place::Place;
use super::report::TargetFacts;
use super::session::Session;
use super::usage::{self, Cpu};
use super::wire::Endpoint;

/// An endpoint that answers.
#[derive(Debug)]
pub(crate) struct Served<'a> {
    session: &'a Session,
    own: Own,
    bucket: String,
}

impl<'a> Served<'a> {
    /// Starts a sidecar with an empty cache.
    pub(crate) fn start(session: &'a Session, wish: &Wish) -> Result<Self, Trouble> {
        let (place, halt) = (&session.place, &session.halt);
        let own = Own::start(place, "s3", Mode::EndpointOnly, wish, false, halt)?;
        let root = place.root().display().to_string();
        session.describe(TargetFacts {
            name: "s3".to_owned(),
            about: "this program's S3 endpoint".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            settings: own.settings().iter().map(|line| line.replace(&root, "WORK")).collect(),
            notes: Vec::new(),
        });
        Ok(Self { session, own, bucket: wish.origin.bucket.clone() })
    }

    /// Where it answers, for everyone who can connect.
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint { address: self.own.s3, key: None, bucket: self.bucket.clone() }
    }

    /// CPU time that it has used.
    pub(crate) fn cpu(&self) -> Cpu {
        Cpu::of(&self.members())
    }

    fn members(&self) -> Vec<u32> {
        usage::members(&self.own.folder, &[self.own.process.pid()])
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        self.session.peak("s3", usage::peak_bytes(&self.members()));
        self.own.process.end();
        if let Err(trouble) = Place::clear(&self.own.folder) {
            eprintln!("warpdrive: {trouble}");
        }
    }
}
