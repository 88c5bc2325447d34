//! What is resident: one slab of nodes, threaded into many doubly linked lists.
//!
//! Invariant: a node is in exactly one list, and a list's bytes are the sum of its nodes'. Every
//! operation is a constant number of steps; freed places are used again, so the slab is never
//! larger than the most objects that were ever resident at once. Refuses to know any policy.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::Item;

/// No node.
const NIL: u32 = u32::MAX;

/// Where a node lies in the slab.
pub(super) type Place = u32;

/// One resident object.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Which object.
    pub(super) item: Item,
    /// Its size.
    pub(super) bytes: u64,
    /// The tracked set that it belongs to.
    pub(super) set: u16,
    /// Uses since it was queued, at most 3 (S3-FIFO).
    pub(super) uses: u8,
    /// The list that it is in.
    pub(super) queue: Queue,
    /// The set's clock when it was used last.
    pub(super) used_at: u64,
    newer: Place,
    older: Place,
}

/// Which list a node is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    /// The small queue of the evicting pool.
    Small,
    /// The main queue of the evicting pool.
    Main,
    /// Its set's own list.
    Kept,
}

/// A list, from the oldest to the newest node.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    newest: Place,
    oldest: Place,
    /// Nodes in it.
    pub(super) len: usize,
    /// Their bytes.
    pub(super) bytes: u64,
}

impl Default for List {
    fn default() -> Self {
        Self { newest: NIL, oldest: NIL, len: 0, bytes: 0 }
    }
}

impl List {
    /// The node that was put in first.
    pub(super) fn oldest(&self) -> Option<Place> {
        (self.oldest != NIL).then_some(self.oldest)
    }

    /// The node that was put in last.
    pub(super) fn newest(&self) -> Option<Place> {
        (self.newest != NIL).then_some(self.newest)
    }
}

/// Spreads the bits of an [`Item`], which callers may have made from a counter.
pub(super) fn mix(value: u64) -> u64 {
    // The finalizer of SplitMix64 (Steele et al., 2014): every input bit reaches every output bit.
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Hashes one `u64` by [`mix`].
#[derive(Debug, Default, Clone)]
pub(super) struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = mix(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = mix(value);
    }
}

/// A map whose keys are one `u64`.
pub(super) type U64Map<K, V> = HashMap<K, V, BuildHasherDefault<Mixer>>;

/// All resident objects.
#[derive(Debug, Default)]
pub(super) struct Residents {
    nodes: Vec<Node>,
    free: Vec<Place>,
    places: U64Map<Item, Place>,
    bytes: u64,
}

impl Residents {
    /// Bytes of all of them.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Where an object lies, if it is resident.
    pub(super) fn find(&self, item: Item) -> Option<Place> {
        self.places.get(&item).copied()
    }

    /// The node at a place that [`Self::find`] or a list gave.
    pub(super) fn at(&self, place: Place) -> &Node {
        &self.nodes[place as usize]
    }

    /// The same, to change. The links and the bytes are not for changing.
    pub(super) fn at_mut(&mut self, place: Place) -> &mut Node {
        &mut self.nodes[place as usize]
    }

    /// Adds an object that is not resident, as the newest of `list`. `None` when there are four
    /// thousand million of them.
    pub(super) fn add(&mut self, list: &mut List, node: NewNode) -> Option<Place> {
        let node = Node {
            item: node.item,
            bytes: node.bytes,
            set: node.set,
            uses: 0,
            queue: node.queue,
            used_at: node.used_at,
            newer: NIL,
            older: NIL,
        };
        let (item, bytes) = (node.item, node.bytes);
        let place = if let Some(place) = self.free.pop() {
            self.nodes[place as usize] = node;
            place
        } else {
            let place = u32::try_from(self.nodes.len()).ok().filter(|p| *p != NIL)?;
            self.nodes.push(node);
            place
        };
        self.places.insert(item, place);
        self.bytes += bytes;
        self.push(list, place);
        Some(place)
    }

    /// Forgets a node that is in no list. Answers what it was.
    pub(super) fn remove(&mut self, place: Place) -> Node {
        let node = self.nodes[place as usize].clone();
        self.places.remove(&node.item);
        self.free.push(place);
        self.bytes -= node.bytes;
        node
    }

    /// Makes a node the newest of `list`; it is in no list.
    pub(super) fn push(&mut self, list: &mut List, place: Place) {
        let old = list.newest;
        let node = &mut self.nodes[place as usize];
        node.newer = NIL;
        node.older = old;
        list.bytes += node.bytes;
        list.len += 1;
        list.newest = place;
        match old {
            NIL => list.oldest = place,
            old => self.nodes[old as usize].newer = place,
        }
    }

    /// Appends a whole list at the old end of another.
    pub(super) fn join(&mut self, list: &mut List, older: List) {
        if list.len == 0 {
            *list = older;
            return;
        }
        if older.len == 0 {
            return;
        }
        self.nodes[list.oldest as usize].older = older.newest;
        self.nodes[older.newest as usize].newer = list.oldest;
        list.oldest = older.oldest;
        list.len += older.len;
        list.bytes += older.bytes;
    }

    /// Takes a node out of `list`, which it is in.
    pub(super) fn unlink(&mut self, list: &mut List, place: Place) {
        let node = &self.nodes[place as usize];
        let (newer, older, bytes) = (node.newer, node.older, node.bytes);
        match newer {
            NIL => list.newest = older,
            newer => self.nodes[newer as usize].older = older,
        }
        match older {
            NIL => list.oldest = newer,
            older => self.nodes[older as usize].newer = newer,
        }
        list.bytes -= bytes;
        list.len -= 1;
    }
}

/// An object that becomes resident.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewNode {
    /// Which object.
    pub(super) item: Item,
    /// Its size.
    pub(super) bytes: u64,
    /// The tracked set that it belongs to.
    pub(super) set: u16,
    /// The list that it is put into.
    pub(super) queue: Queue,
    /// The set's clock.
    pub(super) used_at: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_keep_order_and_count_bytes() {
        let mut all = Residents::default();
        let mut list = List::default();
        let mut other = List::default();
        let node =
            |n: u64| NewNode { item: Item(n), bytes: n, set: 0, queue: Queue::Kept, used_at: 0 };
        let places: Vec<_> = (1..=3).map(|n| all.add(&mut list, node(n)).unwrap()).collect();
        assert_eq!((list.len, list.bytes, all.bytes()), (3, 6, 6));
        all.unlink(&mut list, places[1]);
        all.push(&mut other, places[1]);
        all.unlink(&mut list, places[0]);
        all.push(&mut other, places[0]);
        assert_eq!(other.oldest(), Some(places[1]));
        assert_eq!(other.newest(), Some(places[0]));
        assert_eq!((list.bytes, other.bytes), (3, 3));
        all.join(&mut other, std::mem::take(&mut list));
        assert_eq!((other.oldest(), other.bytes, other.len), (Some(places[2]), 6, 3));
        all.unlink(&mut other, places[1]);
        assert_eq!(all.remove(places[1]).item, Item(2));
        assert_eq!(all.find(Item(2)), None);
        assert_eq!((other.len, all.bytes(), all.len()), (2, 4, 2));
        // A freed place is used again.
        all.add(&mut other, node(9)).unwrap();
        assert_eq!(all.nodes.len(), 3);
    }
}
