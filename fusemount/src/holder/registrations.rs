//! Which node has which number of the kernel for its file.
//!
//! Invariant: one number a node and one node a number, at most [`MAX_REGISTRATIONS`] of them. It
//! makes and ends nothing by itself.

use std::collections::{BTreeMap, HashMap};
use std::io;

use rustix::io::Errno;

/// Each keeps a file open in the kernel, which costs it about 1 KiB; in this process both maps
/// together take 1.5 MiB when full.
pub(crate) const MAX_REGISTRATIONS: usize = 32_768;

/// What is registered.
#[derive(Debug, Default)]
pub(crate) struct Registrations {
    backings: BTreeMap<u64, u32>,
    nodes: HashMap<u32, u64>,
}

impl Registrations {
    /// The number of a node, made if it has none.
    pub(crate) fn register(
        &mut self,
        node: u64,
        make: impl FnOnce() -> io::Result<u32>,
    ) -> io::Result<u32> {
        if let Some(backing) = self.backings.get(&node) {
            return Ok(*backing);
        }
        if self.backings.len() >= MAX_REGISTRATIONS {
            return Err(Errno::NOSPC.into());
        }
        let backing = make()?;
        self.backings.insert(node, backing);
        self.nodes.insert(backing, node);
        Ok(backing)
    }

    /// Forgets a number; false if nothing had it.
    pub(crate) fn release(&mut self, backing: u32) -> bool {
        let node = self.nodes.remove(&backing);
        node.is_some_and(|node| self.backings.remove(&node).is_some())
    }

    /// Registrations of nodes from `first` on, in the order of nodes.
    pub(crate) fn from(&self, first: u64) -> impl Iterator<Item = (u64, u32)> {
        self.backings.range(first..).map(|(node, backing)| (*node, *backing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_number_until_it_is_released() {
        let mut kept = Registrations::default();
        assert_eq!(kept.register(7, || Ok(1)).unwrap(), 1);
        assert_eq!(kept.register(7, || panic!("made twice")).unwrap(), 1);
        assert!(kept.register(8, || Err(Errno::PERM.into())).is_err());
        assert_eq!(kept.register(8, || Ok(2)).unwrap(), 2);
        assert_eq!(kept.from(0).collect::<Vec<_>>(), [(7, 1), (8, 2)]);
        assert_eq!(kept.from(8).collect::<Vec<_>>(), [(8, 2)]);
        assert!(kept.release(1));
        assert!(!kept.release(1));
        assert_eq!(kept.register(7, || Ok(1)).unwrap(), 1);
    }

    #[test]
    fn there_is_a_bound() {
        let mut kept = Registrations::default();
        for node in 0..MAX_REGISTRATIONS {
            kept.register(node as u64, || Ok(node as u32)).unwrap();
        }
        let refused = kept.register(u64::MAX, || panic!("made past the bound")).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
        assert!(kept.release(5));
        kept.register(u64::MAX, || Ok(5)).unwrap();
    }
}
