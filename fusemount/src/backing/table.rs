//! Which mode each open file is in. Pure: it registers nothing, it says what to do.
//!
//! Invariant: from the first open of a node to its last release all opens are in one mode, and a
//! node in passthrough keeps one registration: the kernel answers a mixture with EIO. Here a node
//! is open for longer than there (counted before the reply, until after the release), so what is
//! free here is free there. Registrations that nobody uses are at most a fixed number.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use store::{CopyFate, CopyState};

use crate::nodes::NodeId;

/// Registrations that are released in a sweep because nothing is known of their copies. Each may
/// be a question to the holder.
const UNKNOWN_PER_SWEEP: usize = 256;

/// True one time in eight, in no rhythm that files opened in turn could have (multiples of the golden
/// ratio). Then the registration that was used longest ago makes room, and otherwise the newest is
/// not kept: of files that are opened in turn, and are more than are kept, most of those that are
/// kept are used again, where the oldest first would leave none.
fn oldest_goes(turn: u64) -> bool {
    turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61 == 0
}

/// How the kernel gets the bytes of an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    /// It asks for them, and keeps them in its page cache.
    Cached,
    /// It reads the local file of this registration.
    Passthrough(u32),
}

/// How an open came to its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// By this open.
    Chosen,
    /// By a registration that was kept since it was open last.
    Kept,
    /// By an open before, which is not yet released.
    Joined,
}

/// What there is for an open that may choose.
#[derive(Debug, Clone)]
pub(crate) enum Offer {
    /// No copy, or none that the kernel may have.
    Nothing,
    /// A copy; whoever offers it knows of no registration.
    Copy(Arc<CopyFate>),
    /// A copy with the registration that was made for this open.
    Registered(u32, Arc<CopyFate>),
}

/// What becomes of an open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is counted, and in this mode.
    Opened(Mode, How),
    /// Not counted: register the copy that was offered, and come back with that.
    Register,
    /// Not counted: it would join those who read a bad copy. This node must not be opened again.
    Bad,
}

#[derive(Debug)]
struct Entry {
    mode: Mode,
    /// Opens that are not released; 0 only for a registration that is kept.
    opens: u64,
    /// What becomes of the copy that is registered; unknown for one that a worker before chose.
    fate: Option<Arc<CopyFate>>,
    /// True where the registration may be kept when nobody uses it.
    keep: bool,
    /// True for an open that is guessed at: it ends when the kernel forgets the node.
    guessed: bool,
    /// True where the registration no longer exists, though the kernel goes on reading its file.
    gone: bool,
    /// Which entry of `idle` is this one, while nobody has it open.
    turn: u64,
}

impl Entry {
    fn is_good(&self) -> bool {
        self.fate.as_ref().is_none_or(|fate| fate.state() == CopyState::Good)
    }

    fn is_bad(&self) -> bool {
        self.gone || self.fate.as_ref().is_some_and(|fate| fate.state() == CopyState::Bad)
    }

    /// One more open of what is open.
    fn join(&mut self, offer: &Offer) -> Outcome {
        if let (Mode::Passthrough(_), None, Offer::Copy(fate)) = (self.mode, &self.fate, offer) {
            // Of the same version, so in all likelihood the same file.
            self.fate = Some(Arc::clone(fate));
        }
        if self.is_bad() {
            return Outcome::Bad;
        }
        self.opens += 1;
        Outcome::Opened(self.mode, How::Joined)
    }
}

/// The modes of all nodes that are open, and the registrations that are kept.
#[derive(Debug)]
pub(crate) struct ModeTable {
    entries: HashMap<NodeId, Entry>,
    /// Kept registrations, those that were used longest ago first; what has another turn by now is left over.
    idle: VecDeque<(u64, NodeId)>,
    idle_count: usize,
    idle_limit: usize,
    turns: u64,
    /// Registrations that are of no more use, and have to be released before anything of their
    /// node is registered anew.
    dropped: Vec<u32>,
}

impl ModeTable {
    /// Nothing open; keeps at most so many registrations that nobody uses.
    pub(crate) fn new(idle_limit: usize) -> Self {
        Self {
            entries: HashMap::new(),
            idle: VecDeque::new(),
            idle_count: 0,
            idle_limit,
            turns: 0,
            dropped: Vec::new(),
        }
    }

    /// Opens a node.
    pub(crate) fn open(&mut self, node: NodeId, offer: Offer) -> Outcome {
        if let Some(entry) = self.entries.get_mut(&node) {
            if entry.opens > 0 {
                if let Offer::Registered(id, _) = offer
                    && entry.mode != Mode::Passthrough(id)
                {
                    self.dropped.push(id);
                }
                return entry.join(&offer);
            }
            let same = match (&offer, &entry.fate) {
                (Offer::Copy(offered), Some(kept)) => Arc::ptr_eq(offered, kept),
                _ => false,
            };
            if same && entry.is_good() {
                entry.opens = 1;
                self.idle_count -= 1;
                return Outcome::Opened(entry.mode, How::Kept);
            }
            self.drop_idle(node);
        }
        let (mode, fate) = match offer {
            Offer::Nothing => (Mode::Cached, None),
            Offer::Copy(_) => return Outcome::Register,
            Offer::Registered(id, fate) => (Mode::Passthrough(id), Some(fate)),
        };
        let keep = fate.is_some();
        self.entries.insert(
            node,
            Entry { mode, opens: 1, fate, keep, guessed: false, gone: false, turn: 0 },
        );
        Outcome::Opened(mode, How::Chosen)
    }

    /// Releases one open of a node; one that is not open changes nothing. False then.
    pub(crate) fn release(&mut self, node: NodeId) -> bool {
        let Some(entry) = self.entries.get_mut(&node).filter(|entry| entry.opens > 0) else {
            return false;
        };
        entry.opens -= 1;
        if entry.opens > 0 {
            return true;
        }
        if !entry.keep || !entry.is_good() {
            self.remove(node);
            return true;
        }
        self.turns += 1;
        entry.turn = self.turns;
        self.idle.push_back((self.turns, node));
        self.idle_count += 1;
        if self.idle_count > self.idle_limit && !oldest_goes(self.turns) {
            self.drop_idle(node);
        }
        while self.idle_count > self.idle_limit {
            let Some((turn, oldest)) = self.idle.pop_front() else { break };
            if self.is_idle(oldest, turn) {
                self.drop_idle(oldest);
            }
        }
        if self.idle.len() > 2 * self.idle_count + 64 {
            let mut idle = std::mem::take(&mut self.idle);
            idle.retain(|(turn, node)| self.is_idle(*node, *turn));
            self.idle = idle;
        }
        true
    }

    /// The kernel has forgotten a node, so it has nothing open of it. Releases may still be under
    /// way, though, and then the node may be known again and open before they arrive.
    pub(crate) fn forget(&mut self, node: NodeId) {
        let Some(entry) = self.entries.get_mut(&node) else { return };
        entry.keep = false;
        if entry.opens == 0 {
            self.drop_idle(node);
        } else if entry.guessed {
            self.remove(node);
        }
    }

    /// One more open of a node by a worker before, whose answer the kernel has not got: its mode.
    /// `None` when it must not be opened, and for what is not open.
    pub(crate) fn repeat(&self, node: NodeId) -> Option<Mode> {
        let entry = self.entries.get(&node).filter(|entry| entry.opens > 0)?;
        (!entry.is_bad()).then_some(entry.mode)
    }

    /// Gives up the kept registrations of copies that were evicted or found bad; and, a few at a
    /// time, those of copies of which nothing is known.
    pub(crate) fn sweep(&mut self) {
        let mut unknown = 0;
        let spent = |(node, entry): (&NodeId, &Entry)| {
            if entry.opens > 0 {
                return None;
            }
            unknown += usize::from(entry.fate.is_none());
            let few = entry.fate.is_none() && unknown <= UNKNOWN_PER_SWEEP;
            (few || !entry.is_good()).then_some(*node)
        };
        let spent: Vec<NodeId> = self.entries.iter().filter_map(spent).collect();
        for node in spent {
            self.drop_idle(node);
        }
    }

    /// Takes over what a worker before had open. Where its registration is known to be gone, the
    /// node can be opened no more while it is open.
    pub(crate) fn restore(&mut self, node: NodeId, mode: Mode, opens: u64, gone: bool) {
        if opens > 0 {
            let entry =
                Entry { mode, opens, fate: None, keep: false, guessed: false, gone, turn: 0 };
            self.entries.insert(node, entry);
        }
    }

    /// Takes over a registration that a worker before had made, unless its node is open. Whether
    /// that is known is for the caller to say: where it is not, the node is taken to be open.
    pub(crate) fn inherit(&mut self, node: NodeId, id: u32, opens_known: bool) {
        match self.entries.get_mut(&node) {
            Some(entry) if entry.mode == Mode::Passthrough(id) => {
                if !opens_known {
                    // Perhaps more often than is known.
                    entry.opens += 1;
                    entry.guessed = true;
                }
            }
            Some(_) => self.dropped.push(id),
            None => {
                self.turns += 1;
                let entry = Entry {
                    mode: Mode::Passthrough(id),
                    opens: u64::from(!opens_known),
                    fate: None,
                    keep: false,
                    guessed: !opens_known,
                    gone: false,
                    turn: self.turns,
                };
                self.entries.insert(node, entry);
                if opens_known {
                    self.idle.push_back((self.turns, node));
                    self.idle_count += 1;
                }
            }
        }
    }

    /// Registrations to release, in this order.
    pub(crate) fn take_dropped(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.dropped)
    }

    /// Registrations that could not be released yet: they come first again.
    pub(crate) fn put_back(&mut self, ids: &[u32]) {
        self.dropped.splice(..0, ids.iter().copied());
    }

    /// True when there is something to release.
    pub(crate) fn has_dropped(&self) -> bool {
        !self.dropped.is_empty()
    }

    /// Opens that are not released.
    pub(crate) fn open_count(&self) -> u64 {
        self.entries.values().map(|entry| entry.opens).sum()
    }

    fn is_idle(&self, node: NodeId, turn: u64) -> bool {
        self.entries.get(&node).is_some_and(|entry| entry.opens == 0 && entry.turn == turn)
    }

    fn drop_idle(&mut self, node: NodeId) {
        self.idle_count -= 1;
        self.remove(node);
    }

    fn remove(&mut self, node: NodeId) {
        if let Some(Entry { mode: Mode::Passthrough(id), gone: false, .. }) =
            self.entries.remove(&node)
        {
            self.dropped.push(id);
        }
    }
}

#[cfg(test)]
mod tests;
