//! What all records of a journal say together. Pure.
//!
//! Invariant: the image of a journal is that of the shorter one that [`Image::records`] gives. What
//! is asked of nodes that are not known changes nothing: after damage the image errs by nodes that
//! it does not have, and never invents one.

use std::collections::{HashMap, HashSet, VecDeque};

use super::record::{Record, Request};
use crate::backing::Mode;
use crate::nodes::{NodeId, Version};

/// Requests that are remembered: those that may be unanswered when a worker dies. A record is
/// written directly before its answer, so these are the last few of each thread; a page of a
/// listing is some hundreds.
pub(super) const REMEMBERED_REQUESTS: usize = 16_384;

/// What an id stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Named {
    /// A directory, by its path.
    Directory { parent: NodeId, path: String },
    /// A file, by its name in a directory.
    File { parent: NodeId, name: String, version: Version },
}

/// A node that the kernel knows; one with no lookups is a directory of such a one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeImage {
    /// What it is.
    pub(crate) named: Named,
    /// Lookups that the kernel has not taken back.
    pub(crate) lookups: u64,
    /// True when it must not be opened again.
    pub(crate) condemned: bool,
}

/// A request that has been accounted for.
pub(crate) type Done = (Request, NodeId, u64);

/// What a worker leaves to the next one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Image {
    /// Nodes by id.
    pub(crate) nodes: HashMap<NodeId, NodeImage>,
    /// Modes and counts of open files.
    pub(crate) opens: HashMap<NodeId, (Mode, u64)>,
    /// The last requests, oldest first.
    pub(crate) done: VecDeque<Done>,
}

impl Image {
    /// Adds what one more record says.
    pub(crate) fn apply(&mut self, record: Record) {
        match record {
            Record::Directory { id, parent, path } => {
                self.name(id, Named::Directory { parent, path });
            }
            Record::File { id, parent, name, version } => {
                self.name(id, Named::File { parent, name, version });
            }
            Record::Looked { id, lookups, unique } => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.lookups = node.lookups.saturating_add(lookups);
                }
                self.remember(Request::Lookup, id, unique);
            }
            Record::Forgotten { id, lookups } => {
                let Some(node) = self.nodes.get_mut(&id) else { return };
                node.lookups = node.lookups.saturating_sub(lookups);
                if node.lookups > 0 {
                    return;
                }
                // A file may be known for longer than the directory that it is in.
                if matches!(node.named, Named::File { .. }) {
                    self.nodes.remove(&id);
                }
            }
            Record::Condemned { id } => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.condemned = true;
                }
            }
            Record::Opened { id, mode, opens, unique } => {
                let (now, count) = self.opens.entry(id).or_insert((mode, 0));
                *now = mode;
                *count = count.saturating_add(opens);
                self.remember(Request::Open, id, unique);
            }
            Record::Released { id, unique } => {
                if let Some((_, count)) = self.opens.get_mut(&id) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        self.opens.remove(&id);
                    }
                }
                self.remember(Request::Release, id, unique);
            }
            Record::Done { request, id, unique } => self.remember(request, id, unique),
        }
    }

    /// Drops the directories that the kernel does not know and that no file is in.
    pub(crate) fn prune(&mut self) {
        let needed: HashSet<NodeId> = self
            .nodes
            .values()
            .filter_map(|node| match &node.named {
                Named::File { parent, .. } if node.lookups > 0 => Some(*parent),
                _ => None,
            })
            .collect();
        self.nodes.retain(|id, node| node.lookups > 0 || needed.contains(id));
    }

    /// Records that say the same.
    pub(crate) fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let nodes = self.nodes.iter().flat_map(|(id, node)| {
            let id = *id;
            let named = match node.named.clone() {
                Named::Directory { parent, path } => Record::Directory { id, parent, path },
                Named::File { parent, name, version } => Record::File { id, parent, name, version },
            };
            let lookups = node.lookups;
            let looked = (lookups > 0).then_some(Record::Looked { id, lookups, unique: 0 });
            let condemned = node.condemned.then_some(Record::Condemned { id });
            [Some(named), looked, condemned].into_iter().flatten()
        });
        let opens = self.opens.iter().map(|(id, (mode, opens))| Record::Opened {
            id: *id,
            mode: *mode,
            opens: *opens,
            unique: 0,
        });
        let done = self.done.iter().map(|(request, id, unique)| Record::Done {
            request: *request,
            id: *id,
            unique: *unique,
        });
        nodes.chain(opens).chain(done)
    }

    fn name(&mut self, id: NodeId, named: Named) {
        let new = NodeImage { named: named.clone(), lookups: 0, condemned: false };
        let node = self.nodes.entry(id).or_insert(new);
        // Forgotten, and something else or the same again.
        node.condemned &= node.lookups > 0;
        node.named = named;
    }

    /// 0 is no request: the kernel begins to count after it.
    fn remember(&mut self, request: Request, id: NodeId, unique: u64) {
        if unique != 0 {
            self.done.push_back((request, id, unique));
            if self.done.len() > REMEMBERED_REQUESTS {
                self.done.pop_front();
            }
        }
    }
}
