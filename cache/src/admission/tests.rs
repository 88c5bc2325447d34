//! The policy under arbitrary calls: what it promises whatever is read.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// A tier that does what it is told, and checks what it is told.
struct Tier {
    policy: Admission,
    resident: HashMap<Item, u64>,
    capacity_bytes: u64,
}

impl Tier {
    fn new(capacity_bytes: u64) -> Self {
        Self { policy: Admission::new(capacity_bytes), resident: HashMap::new(), capacity_bytes }
    }

    fn used(&self) -> u64 {
        self.resident.values().sum()
    }

    fn read(&mut self, id: SetId, item: Item, bytes: u64) {
        self.policy.access(id, item, bytes);
        if self.resident.contains_key(&item) {
            return;
        }
        let free_bytes = self.capacity_bytes.saturating_sub(self.used());
        if self.policy.admit(id, item, bytes, free_bytes) == Verdict::Refuse {
            return;
        }
        while self.used() + bytes > self.capacity_bytes && self.evict() {}
        self.policy.inserted(id, item, bytes);
        self.resident.insert(item, bytes);
    }

    fn evict(&mut self) -> bool {
        let victim = self.policy.victim();
        assert_eq!(
            victim.is_none(),
            self.resident.is_empty(),
            "answers while anything is resident"
        );
        let Some(victim) = victim else { return false };
        assert!(self.resident.remove(&victim).is_some(), "a victim is resident");
        // The tier says so again.
        self.policy.removed(victim);
        true
    }

    fn check(&self) {
        assert_eq!(self.policy.resident_bytes(), self.used());
        assert_eq!(self.policy.resident_objects(), self.resident.len());
        let report = self.policy.report();
        assert_eq!(report.iter().map(|set| set.resident_bytes).sum::<u64>(), self.used());
        let objects: u64 = report.iter().map(|set| set.resident_objects).sum();
        assert_eq!(objects, self.resident.len() as u64);
        let lists = self.policy.small.len + self.policy.main.len;
        let kept: usize =
            self.policy.sets.roots().map(|number| self.policy.sets.get(number).kept.len).sum();
        assert_eq!(lists + kept, self.resident.len());
    }
}

#[derive(Debug, Clone)]
enum Call {
    Read {
        store: u64,
        dir: u16,
        object: u64,
    },
    /// A run of reads in a fixed order: passes.
    Pass {
        dir: u16,
        objects: u64,
    },
    Removed {
        dir: u16,
        object: u64,
    },
    Reinserted {
        dir: u16,
        object: u64,
        bytes: u64,
    },
    Victim,
    Spare,
    Capacity(u64),
    Pin(u64, Retention),
}

fn calls() -> impl Strategy<Value = Call> {
    let dir = 0_u16..60;
    let object = 0_u64..80;
    let retention =
        prop_oneof![Just(Retention::Auto), Just(Retention::Keep), Just(Retention::Evict)];
    prop_oneof![
        12 => (0_u64..3, dir.clone(), object.clone())
            .prop_map(|(store, dir, object)| Call::Read { store, dir, object }),
        3 => (dir.clone(), 1_u64..400).prop_map(|(dir, objects)| Call::Pass { dir, objects }),
        1 => (dir.clone(), object.clone()).prop_map(|(dir, object)| Call::Removed { dir, object }),
        1 => (dir, object, 0_u64..3_000)
            .prop_map(|(dir, object, bytes)| Call::Reinserted { dir, object, bytes }),
        2 => Just(Call::Victim),
        2 => Just(Call::Spare),
        1 => (0_u64..200_000).prop_map(Call::Capacity),
        1 => (0_u64..3, retention).prop_map(|(store, retention)| Call::Pin(store, retention)),
    ]
}

fn object(store: u64, dir: u16, number: u64) -> (SetId, Item, u64) {
    // Some directories lie in directories, so that sets are merged now and then.
    let key = match dir {
        0..10 => format!("top-{dir}/{number}"),
        10..50 => format!("data/classes/c{dir}/{number}"),
        _ => format!("deep/a{}/b{dir}/c/{number}", dir % 3),
    };
    let item = Item(lists::mix(store << 48 | u64::from(dir) << 32 | number));
    (SetId::of(store, &key), item, 100 + number * 37)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn victims_are_resident_and_bytes_are_counted(
        calls in prop::collection::vec(calls(), 1..300),
    ) {
        let mut tier = Tier::new(100_000);
        let mut uses = 0_u64;
        let mut pins = 0;
        for call in calls {
            match call {
                Call::Read { store, dir, object: number } => {
                    let (id, item, bytes) = object(store, dir, number);
                    tier.read(id, item, bytes);
                    uses += 1;
                }
                Call::Pass { dir, objects } => {
                    for number in 0..objects {
                        let (id, item, bytes) = object(0, dir, number);
                        tier.read(id, item, bytes);
                    }
                    uses += objects;
                }
                Call::Removed { dir, object: number } => {
                    let (_, item, _) = object(0, dir, number);
                    tier.policy.removed(item);
                    tier.resident.remove(&item);
                }
                Call::Reinserted { dir, object: number, bytes } => {
                    let (id, item, _) = object(0, dir, number);
                    tier.policy.inserted(id, item, bytes);
                    tier.resident.insert(item, bytes);
                }
                Call::Victim => _ = tier.evict(),
                Call::Spare => {
                    if let Some(spare) = tier.policy.spare() {
                        prop_assert!(tier.resident.remove(&spare).is_some());
                    }
                }
                Call::Capacity(bytes) => {
                    tier.capacity_bytes = bytes;
                    tier.policy.set_capacity(bytes);
                }
                Call::Pin(store, retention) => {
                    tier.policy.pin(store, retention);
                    pins += 1;
                }
            }
            tier.check();
        }
        // A mode lasts at least 256 uses of its set, but for the first change and for pins.
        for set in tier.policy.report() {
            prop_assert!(set.mode_changes <= 1 + uses / 256 + pins * 64, "{set:?}");
        }
        while tier.evict() {}
        tier.check();
    }
}

#[test]
fn sets_are_bounded_whatever_is_read() {
    let mut policy = Admission::new(1 << 30);
    for n in 0..100_000_u64 {
        let key = format!("a{}/b{}/c{}/{n}", n % 7_919, n % 104_729, n % 15_485);
        let id = SetId::of(n % 1_000, &key);
        policy.access(id, Item(n), 1_000);
        if policy.admit(id, Item(n), 1_000, 1 << 20) == Verdict::Admit {
            policy.inserted(id, Item(n), 1_000);
        }
    }
    assert!(policy.report().len() <= 256, "{}", policy.report().len());
    assert_eq!(policy.resident_objects(), 100_000);
    let steps = policy.steps() as f64 / 100_000.0;
    assert!(steps < 40.0, "{steps}");
}

#[test]
fn classes_become_one_set_and_data_sets_do_not() {
    let mut policy = Admission::new(1 << 30);
    let mut read = |key: &str, n: u64| {
        let id = SetId::of(1, key);
        policy.access(id, Item(n), 1_000);
        policy.inserted(id, Item(n), 1_000);
    };
    for n in 0..2_000 {
        read(&format!("imagenet/train/n{:08}/{n}", n % 200), n);
        read(&format!("datasets/coco/{n}"), 10_000 + n);
        read(&format!("datasets/c4/{n}"), 20_000 + n);
    }
    let report = policy.report();
    let prefixes: Vec<&str> = report.iter().map(|set| set.prefix.as_str()).collect();
    assert_eq!(prefixes, ["datasets/c4/", "datasets/coco/", "imagenet/train/"]);
    assert!(report.iter().all(|set| set.resident_objects == 2_000), "{report:?}");
}

#[test]
fn a_mode_does_not_flap() {
    // Passes and draws in turn, so that the evidence changes as often as it can.
    let mut tier = Tier::new(200_000);
    let mut uses = 0;
    for round in 0..40_u64 {
        for n in 0..600_u64 {
            let hot = round % 2 == 0 && n % 3 != 0;
            let number = if hot { (n * n + round) % 37 } else { n };
            let (id, item, _) = object(0, 1, number);
            tier.read(id, item, 1_000);
            uses += 1;
        }
    }
    tier.check();
    let changes = tier.policy.report()[0].mode_changes;
    assert!(changes <= 1 + uses / 256, "{changes} changes in {uses} uses");
}

#[test]
fn a_changed_object_is_another_one() {
    let mut tier = Tier::new(10_000);
    let id = SetId::of(1, "train/a");
    tier.read(id, Item(1), 1_000);
    // A new version: the old item goes, the new one comes.
    tier.policy.removed(Item(1));
    tier.resident.remove(&Item(1));
    tier.read(id, Item(2), 3_000);
    tier.check();
    assert_eq!(tier.used(), 3_000);
    // The same item with another size.
    tier.policy.inserted(id, Item(2), 500);
    tier.resident.insert(Item(2), 500);
    tier.check();
}

#[test]
fn nothing_larger_than_the_tier_is_admitted() {
    let mut policy = Admission::new(1_000);
    policy.pin(1, Retention::Evict);
    let id = SetId::of(1, "train/a");
    policy.access(id, Item(1), 2_000);
    assert_eq!(policy.admit(id, Item(1), 2_000, 5_000), Verdict::Refuse);
    policy.set_capacity(0);
    assert_eq!(policy.admit(id, Item(1), 1, 0), Verdict::Refuse);
    assert_eq!(policy.victim(), None);
}

#[test]
fn what_is_pinned_goes_last() {
    let mut policy = Admission::new(100_000);
    policy.pin(1, Retention::Keep);
    let (pinned, other) = (SetId::of(1, "base/x"), SetId::of(2, "train/x"));
    for n in 0..50 {
        policy.access(pinned, Item(n), 1_000);
        policy.inserted(pinned, Item(n), 1_000);
    }
    for n in 100..150 {
        policy.access(other, Item(n), 1_000);
        policy.inserted(other, Item(n), 1_000);
    }
    // The pinned set is long idle, and still nothing of it is spare.
    for n in 200..20_000 {
        policy.access(other, Item(n), 1_000);
    }
    let victims: Vec<Item> = std::iter::from_fn(|| policy.victim()).collect();
    assert!(victims[..50].iter().all(|item| item.0 >= 100), "{victims:?}");
    assert_eq!(victims.len(), 100);
}
