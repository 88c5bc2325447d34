//! The node table: what each node id stands for, for as long as the kernel knows it.
//!
//! Invariant: within a table an id means one thing from its first lookup until the kernel has
//! forgotten it, and a changed object is another thing. Ids are derived from what they name and
//! not counted, so that another process gives the same id to the same thing
//! (docs/decisions/node-ids.md). The table is bounded by what the kernel remembers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::RwLock;
use store::{Bucket, ETag, Namespace, ObjectMeta};
use twox_hash::XxHash3_64;

use crate::journal::{Image, Journal, Named, NodeImage, Record};

/// The id of a node, also its inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(pub(crate) u64);

impl NodeId {
    /// The root, fixed by the protocol.
    pub(crate) const ROOT: Self = Self(1);

    /// The kernel's word for "no inode number" in a directory entry; never given to a node.
    const UNKNOWN: u64 = 0xffff_ffff;

    /// Keeps ids positive as `i64`, which some programs print.
    const MASK: u64 = i64::MAX as u64;

    /// The id that a child has unless another node holds it. Stable across processes.
    fn of_child(parent: Self, name: &str, etag: Option<&ETag>) -> Self {
        let etag = etag.map_or("", ETag::as_str);
        let mut text = Vec::with_capacity(name.len() + etag.len() + 10);
        text.extend_from_slice(&parent.0.to_le_bytes());
        text.extend_from_slice(name.as_bytes());
        // No name holds a NUL or a slash, so that no two things are one text.
        text.extend_from_slice(if etag.is_empty() { b"/" } else { b"\0" });
        text.extend_from_slice(etag.as_bytes());
        Self(XxHash3_64::oneshot(&text) & Self::MASK).usable()
    }

    fn usable(self) -> Self {
        // 0 is no node, 1 the root.
        if self.0 <= Self::ROOT.0 || self.0 == Self::UNKNOWN { self.next() } else { self }
    }

    fn next(self) -> Self {
        Self((self.0 + 1) & Self::MASK).usable()
    }
}

/// One version of an object, as far as a file shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    /// Size in bytes.
    pub(crate) size: u64,
    /// The version.
    pub(crate) etag: ETag,
    /// When it was written.
    pub(crate) modified: SystemTime,
}

impl From<&ObjectMeta> for Version {
    fn from(meta: &ObjectMeta) -> Self {
        Self { size: meta.size, etag: meta.etag.clone(), modified: meta.last_modified }
    }
}

/// What a name in a directory stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A directory.
    Directory,
    /// A file in this version.
    File(Version),
}

impl EntryKind {
    fn etag(&self) -> Option<&ETag> {
        match self {
            Self::Directory => None,
            Self::File(version) => Some(&version.etag),
        }
    }
}

/// A directory: a place in the namespace.
#[derive(Debug)]
pub(crate) struct Directory {
    /// Its id.
    pub(crate) id: NodeId,
    /// The directory above; the root is above itself.
    pub(crate) parent: NodeId,
    /// Its absolute path below the mount point.
    pub(crate) path: String,
    /// The bucket that its keys are in; none where only mount paths lie below.
    pub(crate) bucket: Option<Bucket>,
    /// What its keys begin with: empty, or ending with a slash.
    pub(crate) prefix: String,
    /// Names of mount paths directly below, in byte order; they hide keys.
    pub(crate) mounts: Box<[Arc<str>]>,
}

impl Directory {
    fn new(namespace: &Namespace, id: NodeId, parent: NodeId, path: String) -> Self {
        let (bucket, prefix) = match namespace.locate(&path) {
            None => (None, String::new()),
            Some(at) if at.key.is_empty() => (Some(at.bucket.clone()), String::new()),
            Some(at) => (Some(at.bucket.clone()), format!("{}/", at.key)),
        };
        let mounts = namespace.mount_names(&path).into_iter().map(Arc::from).collect();
        Self { id, parent, path, bucket, prefix, mounts }
    }

    /// True when a mount path has this name.
    pub(crate) fn is_mount(&self, name: &str) -> bool {
        self.mounts.iter().any(|mount| **mount == *name)
    }

    fn child_path(&self, name: &str) -> String {
        if self.path == "/" { format!("/{name}") } else { format!("{}/{name}", self.path) }
    }
}

/// A file: a name in a directory, and the version that it was looked up in.
#[derive(Debug, Clone)]
pub(crate) struct File {
    /// Where it is.
    pub(crate) parent: Arc<Directory>,
    /// Its name there.
    pub(crate) name: Arc<str>,
    /// Its version.
    pub(crate) version: Version,
}

/// What an id stands for.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    /// A directory.
    Directory(Arc<Directory>),
    /// A file.
    File(File),
}

impl Node {
    fn record(&self, id: NodeId) -> Record {
        match self {
            Self::Directory(directory) => {
                Record::Directory { id, parent: directory.parent, path: directory.path.clone() }
            }
            Self::File(file) => Record::File {
                id,
                parent: file.parent.id,
                name: (*file.name).into(),
                version: file.version.clone(),
            },
        }
    }

    fn is(&self, parent: &Directory, name: &str, etag: Option<&ETag>) -> bool {
        match self {
            Self::Directory(directory) => {
                etag.is_none()
                    && directory.parent == parent.id
                    && directory.path.rsplit('/').next() == Some(name)
            }
            Self::File(file) => {
                Some(&file.version.etag) == etag
                    && file.parent.id == parent.id
                    && *file.name == *name
            }
        }
    }
}

#[derive(Debug)]
struct Counted {
    node: Node,
    /// Lookups that the kernel has not taken back.
    lookups: u64,
    /// True for a file that must not be opened again under this id.
    condemned: bool,
}

impl Counted {
    fn is(&self, parent: &Directory, name: &str, etag: Option<&ETag>) -> bool {
        !self.condemned && self.node.is(parent, name, etag)
    }
}

/// The node table.
#[derive(Debug)]
pub(crate) struct NodeTable {
    namespace: Arc<Namespace>,
    root: Arc<Directory>,
    journal: Option<Arc<Journal>>,
    nodes: RwLock<HashMap<NodeId, Counted>>,
}

impl NodeTable {
    /// A table that knows the root and what a worker before has left, and that notes in a journal
    /// whatever the kernel is told.
    pub(crate) fn new(
        namespace: Arc<Namespace>,
        journal: Option<Arc<Journal>>,
        past: &Image,
    ) -> Self {
        let root = Directory::new(&namespace, NodeId::ROOT, NodeId::ROOT, "/".into());
        let root = Arc::new(root);
        let nodes = RwLock::new(recover(&namespace, &root, past));
        Self { namespace, root, journal, nodes }
    }

    /// Nodes that the kernel knows, the root not counted.
    pub(crate) fn len(&self) -> usize {
        self.nodes.read().len()
    }

    /// Every id but the root's.
    #[cfg(test)]
    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.nodes.read().keys().copied().collect()
    }

    /// What an id stands for; `None` when the kernel has forgotten it.
    pub(crate) fn get(&self, id: NodeId) -> Option<Node> {
        if id == NodeId::ROOT {
            return Some(Node::Directory(Arc::clone(&self.root)));
        }
        self.nodes.read().get(&id).map(|counted| counted.node.clone())
    }

    /// True for what was condemned.
    pub(crate) fn is_condemned(&self, id: NodeId) -> bool {
        self.nodes.read().get(&id).is_some_and(|counted| counted.condemned)
    }

    /// The id that a child has, or would have, without counting a lookup.
    pub(crate) fn id_of(&self, parent: &Directory, name: &str, kind: &EntryKind) -> NodeId {
        place(&self.nodes.read(), parent, name, kind.etag())
    }

    /// True when the kernel knows a directory of this name.
    pub(crate) fn holds_directory(&self, parent: &Directory, name: &str) -> bool {
        let nodes = self.nodes.read();
        nodes.contains_key(&place(&nodes, parent, name, None))
    }

    /// Counts one lookup of a child and returns its id. `unique` is the number of the request;
    /// `is_done` is asked whether a worker before has counted this one.
    pub(crate) fn remember(
        &self,
        parent: &Arc<Directory>,
        name: &Arc<str>,
        kind: &EntryKind,
        unique: u64,
        is_done: impl FnOnce(NodeId) -> bool,
    ) -> NodeId {
        let mut nodes = self.nodes.write();
        let id = place(&nodes, parent, name, kind.etag());
        let mut changed = !nodes.contains_key(&id);
        let counted = nodes.entry(id).or_insert_with(|| {
            let node = match kind {
                EntryKind::Directory => {
                    let path = parent.child_path(name);
                    let directory = Directory::new(&self.namespace, id, parent.id, path);
                    Node::Directory(Arc::new(directory))
                }
                EntryKind::File(version) => Node::File(File {
                    parent: Arc::clone(parent),
                    name: Arc::clone(name),
                    version: version.clone(),
                }),
            };
            Counted { node, lookups: 0, condemned: false }
        });
        let is_done = counted.lookups > 0 && is_done(id);
        counted.lookups += u64::from(!is_done);
        // The same bytes may have been written again, later.
        if let (Node::File(file), EntryKind::File(version)) = (&mut counted.node, kind)
            && file.version.modified != version.modified
        {
            file.version.modified = version.modified;
            changed = true;
        }
        if let Some(journal) = &self.journal {
            let looked = Record::Looked { id, lookups: u64::from(!is_done), unique };
            // Together: what is named and not looked up is not kept.
            match (changed, is_done) {
                (true, _) => journal.note(&[counted.node.record(id), looked]),
                (false, false) => journal.note(&[looked]),
                (false, true) => {}
            }
        }
        id
    }

    /// From now on the name of a file is another node: a lookup finds that one. What has this one
    /// open keeps it.
    pub(crate) fn condemn(&self, id: NodeId) {
        if let Some(counted) = self.nodes.write().get_mut(&id) {
            counted.condemned = true;
            self.note(Record::Condemned { id });
        }
    }

    /// Takes back lookups. `gone` gets the nodes that nobody knows any more, before anybody can get
    /// to know them again.
    pub(crate) fn forget(
        &self,
        forgets: impl IntoIterator<Item = (NodeId, u64)>,
        mut gone: impl FnMut(NodeId),
    ) {
        let mut nodes = self.nodes.write();
        for (id, lookups) in forgets {
            let Some(counted) = nodes.get_mut(&id) else { continue };
            counted.lookups = counted.lookups.saturating_sub(lookups);
            if counted.lookups == 0 {
                nodes.remove(&id);
                gone(id);
            }
            self.note(Record::Forgotten { id, lookups });
        }
    }

    fn note(&self, record: Record) {
        if let Some(journal) = &self.journal {
            journal.note(&[record]);
        }
    }
}

/// What a worker before has left. A file whose directory is lost is left out.
fn recover(namespace: &Namespace, root: &Arc<Directory>, past: &Image) -> HashMap<NodeId, Counted> {
    let mut directories = HashMap::from([(NodeId::ROOT, Arc::clone(root))]);
    for (id, image) in &past.nodes {
        if let Named::Directory { parent, path } = &image.named {
            let directory = Directory::new(namespace, *id, *parent, path.clone());
            directories.insert(*id, Arc::new(directory));
        }
    }
    let known = past.nodes.iter().filter(|(_, image)| image.lookups > 0);
    known
        .filter_map(|(id, image)| {
            let node = match &image.named {
                Named::Directory { .. } => Node::Directory(Arc::clone(directories.get(id)?)),
                Named::File { parent, name, version } => Node::File(File {
                    parent: Arc::clone(directories.get(parent)?),
                    name: name.as_str().into(),
                    version: version.clone(),
                }),
            };
            let NodeImage { lookups, condemned, .. } = *image;
            Some((*id, Counted { node, lookups, condemned }))
        })
        .collect()
}

/// Where a child is, or belongs: at its derived id, or after those that happen to share it.
fn place(
    nodes: &HashMap<NodeId, Counted>,
    parent: &Directory,
    name: &str,
    etag: Option<&ETag>,
) -> NodeId {
    let mut id = NodeId::of_child(parent.id, name, etag);
    while nodes.get(&id).is_some_and(|counted| !counted.is(parent, name, etag)) {
        id = id.next();
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(etag: &str) -> EntryKind {
        EntryKind::File(Version {
            size: 3,
            etag: ETag::parse(etag),
            modified: SystemTime::UNIX_EPOCH,
        })
    }

    fn remember(
        table: &NodeTable,
        parent: &Arc<Directory>,
        name: &Arc<str>,
        kind: &EntryKind,
    ) -> NodeId {
        table.remember(parent, name, kind, 0, |_| false)
    }

    fn forget(table: &NodeTable, id: NodeId, lookups: u64) -> Vec<NodeId> {
        let mut gone = Vec::new();
        table.forget([(id, lookups)], |id| gone.push(id));
        gone
    }

    fn table() -> (NodeTable, Arc<Directory>) {
        let table = NodeTable::new(Arc::new(Namespace::default()), None, &Image::default());
        let Some(Node::Directory(root)) = table.get(NodeId::ROOT) else { panic!("no root") };
        (table, root)
    }

    #[test]
    fn ids_follow_name_and_version_and_nothing_else() {
        let (one, root) = table();
        let (other, other_root) = table();
        let name: Arc<str> = "a".into();
        let id = remember(&one, &root, &name, &version("1"));
        assert_eq!(remember(&one, &root, &name, &version("1")), id);
        assert_eq!(remember(&other, &other_root, &name, &version("1")), id);
        assert_ne!(remember(&one, &root, &name, &version("2")), id);
        assert_ne!(remember(&one, &root, &name, &EntryKind::Directory), id);
        assert_ne!(remember(&one, &root, &"b".into(), &version("1")), id);
        assert_eq!(one.len(), 4);
    }

    #[test]
    fn a_node_lives_until_every_lookup_is_taken_back() {
        let (table, root) = table();
        let name: Arc<str> = "d".into();
        let id = remember(&table, &root, &name, &EntryKind::Directory);
        remember(&table, &root, &name, &EntryKind::Directory);
        assert!(forget(&table, id, 1).is_empty());
        assert!(table.holds_directory(&root, "d"));
        assert_eq!(forget(&table, id, 1), [id]);
        assert!(table.get(id).is_none());
        assert!(!table.holds_directory(&root, "d"));
        assert!(forget(&table, id, 7).is_empty());
        assert!(forget(&table, NodeId::ROOT, 9).is_empty());
        assert!(table.get(NodeId::ROOT).is_some());
    }

    #[test]
    fn a_shared_id_is_resolved_by_moving_on() {
        let (table, root) = table();
        let name: Arc<str> = "a".into();
        let wanted = NodeId::of_child(root.id, "a", None);
        let squatter = File {
            parent: Arc::clone(&root),
            name: "x".into(),
            version: Version { size: 0, etag: ETag::parse("1"), modified: SystemTime::UNIX_EPOCH },
        };
        table
            .nodes
            .write()
            .insert(wanted, Counted { node: Node::File(squatter), lookups: 1, condemned: false });
        let id = remember(&table, &root, &name, &EntryKind::Directory);
        assert_eq!(id, wanted.next());
        assert_eq!(remember(&table, &root, &name, &EntryKind::Directory), id);
    }

    #[test]
    fn reserved_numbers_are_never_ids() {
        for reserved in [0, 1, NodeId::UNKNOWN] {
            assert!(NodeId(reserved).usable().0 > 1);
            assert_ne!(NodeId(reserved).usable().0, NodeId::UNKNOWN);
        }
        assert_eq!(NodeId(NodeId::MASK).next(), NodeId(2));
    }
}
