//! The table against a model of the kernel's rules.

use proptest::prelude::*;

use super::*;

/// What `fs/fuse/iomode.c` does with the answers, for one inode.
#[derive(Debug, Default)]
struct Inode {
    cached: u64,
    passthrough: u64,
    backing: Option<u32>,
}

impl Inode {
    /// False is EIO at the program.
    fn open(&mut self, mode: Mode, registered: &[u32]) -> bool {
        match mode {
            Mode::Cached => {
                self.cached += 1;
                self.passthrough == 0
            }
            Mode::Passthrough(id) => {
                let fits = self.backing.is_none_or(|backing| backing == id);
                self.passthrough += 1;
                self.backing = Some(id);
                fits && self.cached == 0 && registered.contains(&id)
            }
        }
    }

    fn close(&mut self) -> bool {
        if self.cached > 0 {
            self.cached -= 1;
        } else if self.passthrough > 0 {
            self.passthrough -= 1;
            if self.passthrough == 0 {
                self.backing = None;
            }
        } else {
            return false;
        }
        true
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Asks for an open, which is answered at once or (true) only later.
    Open(u8, bool),
    /// The kernel gets the oldest answer that is under way.
    Deliver,
    Close(u8),
    /// The release of a close arrives.
    Release,
    /// The cache has a copy now.
    Complete(u8),
    Evict(u8),
    Condemn(u8),
    /// A registration fails from now on, or works again.
    Refuse(bool),
    Forget(u8),
    Sweep,
    Restart(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..3u8;
    prop_oneof![
        8 => (node(), any::<bool>()).prop_map(|(node, later)| Step::Open(node, later)),
        4 => Just(Step::Deliver),
        6 => node().prop_map(Step::Close),
        5 => Just(Step::Release),
        4 => node().prop_map(Step::Complete),
        2 => node().prop_map(Step::Evict),
        1 => node().prop_map(Step::Condemn),
        1 => any::<bool>().prop_map(Step::Refuse),
        1 => node().prop_map(Step::Forget),
        1 => Just(Step::Sweep),
        1 => any::<bool>().prop_map(Step::Restart),
    ]
}

/// The kernel, the cache and the one who registers.
struct World {
    table: ModeTable,
    inodes: [Inode; 3],
    copies: [Option<Arc<CopyFate>>; 3],
    /// Node and fate of each registration by number.
    registered: HashMap<u32, (NodeId, Arc<CopyFate>)>,
    next_id: u32,
    refuse: bool,
    /// Answers that the kernel has not read.
    answers: VecDeque<(usize, Mode)>,
    /// Releases that have not been read.
    releases: VecDeque<usize>,
    /// Nodes are replaced by others once they are condemned.
    generation: [u64; 3],
}

impl World {
    fn id(&self, node: usize) -> NodeId {
        NodeId(10 + node as u64 + 100 * self.generation[node])
    }

    fn settle(&mut self) {
        for id in self.table.take_dropped() {
            assert!(self.registered.remove(&id).is_some(), "{id} released twice");
        }
    }

    fn open(&mut self, node: usize, later: bool) -> std::result::Result<(), TestCaseError> {
        let id = self.id(node);
        let copy = self.copies[node].clone();
        let offer = copy.clone().map_or(Offer::Nothing, Offer::Copy);
        let mut outcome = self.table.open(id, offer);
        self.settle();
        if outcome == Outcome::Register {
            prop_assert!(copy.is_some());
            prop_assert!(self.registered.values().all(|(node, _)| *node != id), "two for one node");
            let offer = match copy {
                Some(fate) if !self.refuse => {
                    self.next_id += 1;
                    self.registered.insert(self.next_id, (id, Arc::clone(&fate)));
                    Offer::Registered(self.next_id, fate)
                }
                _ => Offer::Nothing,
            };
            outcome = self.table.open(id, offer);
            self.settle();
        }
        match outcome {
            Outcome::Opened(mode, how) => {
                if let Mode::Passthrough(id) = mode
                    && how != How::Joined
                {
                    prop_assert_eq!(self.registered[&id].1.state(), CopyState::Good);
                }
                self.answers.push_back((node, mode));
                if !later {
                    self.deliver_all()?;
                }
            }
            Outcome::Bad => {
                prop_assert!(
                    self.inodes[node].passthrough > 0
                        || !self.answers.is_empty()
                        || !self.releases.is_empty()
                );
                // ESTALE, and the next lookup gives another node. The old one goes on by itself.
                self.generation[node] += 1;
                let inode = std::mem::take(&mut self.inodes[node]);
                let coming = self.answers.iter().filter(|(other, _)| *other == node).count()
                    + self.releases.iter().filter(|other| **other == node).count();
                self.answers.retain(|(other, _)| *other != node);
                self.releases.retain(|other| *other != node);
                for _ in 0..inode.cached + inode.passthrough + coming as u64 {
                    prop_assert!(self.table.release(id));
                }
                self.table.forget(id);
                self.settle();
            }
            Outcome::Register => prop_assert!(false, "asked to register what is registered"),
        }
        Ok(())
    }

    fn deliver_all(&mut self) -> std::result::Result<(), TestCaseError> {
        while self.deliver()? {}
        Ok(())
    }

    fn deliver(&mut self) -> std::result::Result<bool, TestCaseError> {
        let Some((node, mode)) = self.answers.pop_front() else { return Ok(false) };
        let registered: Vec<u32> = self.registered.keys().copied().collect();
        prop_assert!(
            self.inodes[node].open(mode, &registered),
            "EIO: {:?} for {:?}",
            mode,
            self.inodes[node]
        );
        Ok(true)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order, the kernel never sees two modes in one inode, nor a
    /// registration that is gone; nothing is released twice, and nothing is left at the end.
    #[test]
    fn the_kernel_never_sees_a_mixture(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World {
            table: ModeTable::new(1),
            inodes: Default::default(),
            copies: Default::default(),
            registered: HashMap::new(),
            next_id: 0,
            refuse: false,
            answers: VecDeque::new(),
            releases: VecDeque::new(),
            generation: [0; 3],
        };
        for step in steps {
            match step {
                Step::Open(node, later) => world.open(usize::from(node), later)?,
                Step::Deliver => _ = world.deliver()?,
                Step::Close(node) => {
                    if world.inodes[usize::from(node)].close() {
                        world.releases.push_back(usize::from(node));
                    }
                }
                Step::Release => {
                    if let Some(node) = world.releases.pop_front() {
                        let id = world.id(node);
                        prop_assert!(world.table.release(id));
                        world.settle();
                    }
                }
                Step::Complete(node) => {
                    let copy = &mut world.copies[usize::from(node)];
                    if copy.as_ref().is_none_or(|fate| fate.state() != CopyState::Good) {
                        *copy = Some(Arc::default());
                    }
                }
                Step::Evict(node) => {
                    if let Some(fate) = world.copies[usize::from(node)].take() {
                        fate.evict();
                    }
                }
                Step::Condemn(node) => {
                    if let Some(fate) = world.copies[usize::from(node)].take() {
                        fate.condemn();
                    }
                }
                Step::Refuse(refuse) => world.refuse = refuse,
                Step::Forget(node) => {
                    let node = usize::from(node);
                    let inode = &world.inodes[node];
                    let quiet = !world.answers.iter().any(|(other, _)| *other == node)
                        && !world.releases.contains(&node);
                    if inode.cached + inode.passthrough == 0 && quiet {
                        world.table.forget(world.id(node));
                        world.settle();
                    }
                }
                Step::Sweep => {
                    world.table.sweep();
                    world.settle();
                    for (node, fate) in world.registered.values() {
                        let open = world.table.entries[node].opens > 0;
                        prop_assert!(open || fate.state() == CopyState::Good, "space is not given back");
                    }
                }
                Step::Restart(lost) => restart(&mut world, lost)?,
            }
            prop_assert!(world.table.idle_count <= 1);
            let idle = world.table.entries.values().filter(|entry| entry.opens == 0).count();
            prop_assert_eq!(idle, world.table.idle_count);
        }
        world.deliver_all()?;
        for node in 0..3 {
            while world.inodes[node].close() {
                world.releases.push_back(node);
            }
        }
        for node in std::mem::take(&mut world.releases) {
            let id = world.id(node);
            prop_assert!(world.table.release(id));
        }
        prop_assert_eq!(world.table.open_count(), 0);
        world.settle();
        let kept = world.table.idle_count;
        prop_assert_eq!(world.registered.len(), kept);
    }
}

/// Another worker, which knows of each node how many opens there are and in which mode. Where the
/// holder was lost as well, so is what it had registered.
fn restart(world: &mut World, lost: bool) -> std::result::Result<(), TestCaseError> {
    if lost {
        world.deliver_all()?;
    }
    let mut table = ModeTable::new(1);
    let mut wanted = Vec::new();
    for (node, entry) in &world.table.entries {
        let gone = entry.gone || (lost && entry.mode != Mode::Cached);
        table.restore(*node, entry.mode, entry.opens, gone);
        if let Mode::Passthrough(id) = entry.mode
            && entry.opens > 0
            && !gone
        {
            wanted.push(id);
        }
    }
    world.registered.retain(|id, _| wanted.contains(id));
    world.table = table;
    Ok(())
}

#[test]
fn files_that_are_opened_in_turn_find_their_registrations() {
    const KEPT: usize = 100;
    let mut table = ModeTable::new(KEPT);
    let fates: Vec<Arc<CopyFate>> = (0..2 * KEPT).map(|_| Arc::default()).collect();
    let mut kept = 0;
    for epoch in 0..20 {
        for (n, fate) in (0..).zip(&fates) {
            let node = NodeId(10 + n);
            match table.open(node, Offer::Copy(Arc::clone(fate))) {
                Outcome::Register => {
                    let id = (epoch * fates.len() as u64 + n) as u32;
                    table.open(node, Offer::Registered(id, Arc::clone(fate)));
                }
                Outcome::Opened(_, How::Kept) => kept += usize::from(epoch >= 10),
                other => panic!("{other:?}"),
            }
            assert!(table.release(node));
            table.take_dropped();
        }
    }
    // A half fits, and a fifth of that is what aging may cost.
    assert!(kept > 10 * fates.len() * 4 / 10, "{kept} of {}", 10 * fates.len());
    // And files that are opened no more make room in time.
    for round in 0..40 * KEPT as u64 {
        let node = NodeId(10_000 + round % 50);
        let fate = Arc::clone(&fates[(round % 50) as usize]);
        if table.open(node, Offer::Copy(Arc::clone(&fate))) == Outcome::Register {
            table.open(node, Offer::Registered(100_000 + round as u32, fate));
        }
        assert!(table.release(node));
    }
    let new = (0..50).filter(|n| table.entries.contains_key(&NodeId(10_000 + n))).count();
    assert_eq!(new, 50);
}
