//! Which node has which number of the kernel for its file.
//!
//! Invariant: one number a node, one node a number and one file a number, at most
//! [`MAX_REGISTRATIONS`] of them. What is released is ended by whoever releases it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::fstat;
use rustix::io::Errno;

use super::device;

/// Each keeps a file open in the kernel, which costs it about 1 KiB; in this process both maps
/// together take 2.5 MiB when full.
pub(crate) const MAX_REGISTRATIONS: usize = 32_768;

/// Device and inode of a file.
type Identity = (u64, u64);

/// What is registered.
#[derive(Debug, Default)]
pub(crate) struct Registrations {
    backings: BTreeMap<u64, (u32, Identity)>,
    nodes: HashMap<u32, u64>,
}

impl Registrations {
    /// The number of a node for a file, made if it has none. A node that has one for another file
    /// loses that: whoever asked for it has not heard the answer, or found the file bad since.
    pub(crate) fn register(
        &mut self,
        node: u64,
        device: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
    ) -> io::Result<u32> {
        let found = fstat(file)?;
        let make = || device::open_backing(device, file);
        // It fails only for a number that the kernel does not know.
        let end = |backing| _ = device::close_backing(device, backing);
        self.exchange(node, (found.st_dev, found.st_ino), make, end)
    }

    fn exchange(
        &mut self,
        node: u64,
        identity: Identity,
        make: impl FnOnce() -> io::Result<u32>,
        end: impl FnOnce(u32),
    ) -> io::Result<u32> {
        match self.backings.get(&node) {
            Some((backing, known)) if *known == identity => return Ok(*backing),
            Some((backing, _)) => {
                let backing = *backing;
                self.release(backing);
                end(backing);
            }
            None if self.backings.len() >= MAX_REGISTRATIONS => return Err(Errno::NOSPC.into()),
            None => {}
        }
        let backing = make()?;
        self.backings.insert(node, (backing, identity));
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
        self.backings.range(first..).map(|(node, (backing, _))| (*node, *backing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Identity = (1, 1);

    fn register(kept: &mut Registrations, node: u64, number: u32) -> io::Result<u32> {
        kept.exchange(node, FILE, || Ok(number), |_| panic!("ended for the same file"))
    }

    #[test]
    fn a_node_keeps_its_number_until_it_is_released() {
        let mut kept = Registrations::default();
        assert_eq!(register(&mut kept, 7, 1).unwrap(), 1);
        assert_eq!(register(&mut kept, 7, 9).unwrap(), 1);
        assert!(kept.exchange(8, FILE, || Err(Errno::PERM.into()), |_| {}).is_err());
        assert_eq!(register(&mut kept, 8, 2).unwrap(), 2);
        assert_eq!(kept.from(0).collect::<Vec<_>>(), [(7, 1), (8, 2)]);
        assert_eq!(kept.from(8).collect::<Vec<_>>(), [(8, 2)]);
        assert!(kept.release(1));
        assert!(!kept.release(1));
        assert_eq!(register(&mut kept, 7, 1).unwrap(), 1);
    }

    #[test]
    fn another_file_of_a_node_gets_another_number() {
        let mut kept = Registrations::default();
        register(&mut kept, 7, 1).unwrap();
        let mut ended = Vec::new();
        assert_eq!(kept.exchange(7, (1, 2), || Ok(2), |id| ended.push(id)).unwrap(), 2);
        assert_eq!(ended, [1]);
        assert!(!kept.release(1));
        // Where it cannot be made, the old one is gone all the same.
        let refused = kept.exchange(7, (2, 2), || Err(Errno::MFILE.into()), |id| ended.push(id));
        assert!(refused.is_err() && !kept.release(2));
        assert_eq!((ended, kept.from(0).count()), (vec![1, 2], 0));
    }

    #[test]
    fn there_is_a_bound() {
        let mut kept = Registrations::default();
        for node in 0..MAX_REGISTRATIONS {
            register(&mut kept, node as u64, node as u32).unwrap();
        }
        let refused = register(&mut kept, u64::MAX, 0).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
        assert!(kept.release(5));
        register(&mut kept, u64::MAX, 5).unwrap();
    }
}
