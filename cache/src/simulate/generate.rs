//! Traces of how data is read in training, made from fixed seeds.
//!
//! Invariant: the same trace each time, on every machine.

use super::{Object, Trace};
use crate::admission::{Item, SetId};

/// Objects of a generated data set: enough that a hit rate is exact to half a percent.
const OBJECTS: usize = 10_000;

/// Bytes of an object where all have one size.
const OBJECT_BYTES: u64 = 128 << 10;

/// `SplitMix64` (Steele, Lea, Flood, 2014).
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`; the bias of the multiplication is below 2^-32 for the sizes used here.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// From 0 to 1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for n in (1..items.len()).rev() {
            items.swap(n, self.below(n + 1));
        }
    }
}

/// A size, without its fraction. It is never negative.
#[allow(clippy::cast_sign_loss)]
fn size(bytes: f64) -> u64 {
    bytes as u64
}

/// Objects of one prefix of a store.
pub(super) fn objects(
    store_id: u64,
    prefix: &str,
    count: usize,
    bytes: impl Fn(usize) -> u64,
) -> Vec<Object> {
    let object = |n: usize| Object {
        set: SetId::of(store_id, &format!("{prefix}{n:07}")),
        item: item(store_id, prefix, n),
        bytes: bytes(n),
        job: 0,
    };
    (0..count).map(object).collect()
}

fn item(store_id: u64, prefix: &str, n: usize) -> Item {
    let seed = prefix
        .bytes()
        .fold(store_id, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    Item(Random(seed ^ ((n as u64) << 20)).next())
}

/// A trace that is put together part by part.
pub(super) struct Draft {
    pub(super) objects: Vec<Object>,
    pub(super) uses: Vec<u32>,
    pub(super) random: Random,
    pub(super) counted_from: usize,
}

/// Objects of a draft.
pub(super) type Range = std::ops::Range<u32>;

impl Draft {
    pub(super) fn new(seed: u64) -> Self {
        Self { objects: Vec::new(), uses: Vec::new(), random: Random(seed), counted_from: 0 }
    }

    pub(super) fn add(&mut self, prefix: &str, count: usize, job: u8) -> Range {
        self.add_sized(prefix, count, job, |_| OBJECT_BYTES)
    }

    pub(super) fn add_sized(
        &mut self,
        prefix: &str,
        count: usize,
        job: u8,
        bytes: impl Fn(usize) -> u64,
    ) -> Range {
        let start = self.objects.len() as u32;
        let mut made = objects(1, prefix, count, bytes);
        for object in &mut made {
            object.job = job;
        }
        self.objects.extend(made);
        start..self.objects.len() as u32
    }

    pub(super) fn shuffled(&mut self, range: &Range) -> Vec<u32> {
        let mut order: Vec<u32> = range.clone().collect();
        self.random.shuffle(&mut order);
        order
    }

    /// Full passes in a new order each.
    pub(super) fn epochs(&mut self, range: &Range, epochs: usize) {
        for _ in 0..epochs {
            let order = self.shuffled(range);
            self.uses.extend(order);
        }
    }

    /// Draws by popularity `1 / rank^alpha`; ranks have nothing to do with names.
    pub(super) fn zipf(&mut self, range: &Range, alpha: f64, uses: usize) -> Vec<u32> {
        let ranked = self.shuffled(range);
        let mut sum = 0.0;
        let weights: Vec<f64> = (1..=ranked.len())
            .map(|rank| {
                sum += (rank as f64).powf(-alpha);
                sum
            })
            .collect();
        (0..uses)
            .map(|_| {
                let at = self.random.unit() * sum;
                ranked[weights.partition_point(|w| *w < at).min(ranked.len() - 1)]
            })
            .collect()
    }

    /// Two sequences, `share` of the uses of the first; the longer one is cut.
    pub(super) fn mix(&mut self, first: &[u32], second: &[u32], share: f64) {
        let (mut first, mut second) = (first.iter(), second.iter());
        loop {
            let next = if self.random.unit() < share { first.next() } else { second.next() };
            match next {
                Some(number) => self.uses.push(*number),
                None => return,
            }
        }
    }

    pub(super) fn orders(&mut self, range: &Range, epochs: usize) -> Vec<u32> {
        (0..epochs).flat_map(|_| self.shuffled(range)).collect()
    }

    /// Hits count from here on.
    pub(super) fn count_from_here(&mut self) {
        self.counted_from = self.uses.len();
    }

    /// The trace, on a cache that holds `share` of the bytes of `of`.
    pub(super) fn finish(
        self,
        name: impl Into<String>,
        share: f64,
        of: &Range,
        jobs: &[&'static str],
    ) -> Trace {
        let bytes: u64 =
            self.objects[of.start as usize..of.end as usize].iter().map(|o| o.bytes).sum();
        Trace {
            name: name.into(),
            objects: self.objects,
            uses: self.uses,
            counted_from: self.counted_from,
            capacity_bytes: size(bytes as f64 * share),
            jobs: jobs.to_vec(),
        }
    }
}

/// Shuffled passes, hits counted from the second on.
pub(super) fn shuffled_epochs(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let set = draft.add("train/", OBJECTS, 0);
    draft.epochs(&set, 1);
    draft.count_from_here();
    draft.epochs(&set, 4);
    draft.finish(format!("shuffled epochs, c = {share}"), share, &set, &[])
}

/// The same order each time.
pub(super) fn sequential_epochs(share: f64) -> Trace {
    let mut draft = Draft::new(1);
    let set = draft.add("train/", OBJECTS, 0);
    for epoch in 0..5 {
        draft.uses.extend(set.clone());
        if epoch == 0 {
            draft.count_from_here();
        }
    }
    draft.finish(format!("sequential epochs, c = {share}"), share, &set, &[])
}

/// Independent draws of unequal popularity, hits counted from the start.
pub(super) fn zipf(alpha: f64, share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let set = draft.add("models/", OBJECTS, 0);
    draft.uses = draft.zipf(&set, alpha, 20 * OBJECTS);
    draft.finish(format!("Zipf {alpha}, c = {share}"), share, &set, &[])
}

/// Two jobs in passes over two data sets of one size; the first reads three times as fast.
pub(super) fn two_jobs(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let fast = draft.add("one/", OBJECTS, 0);
    let slow = draft.add("two/", OBJECTS, 1);
    let (first, second) = (draft.orders(&fast, 18), draft.orders(&slow, 6));
    draft.mix(&first, &second, 0.75);
    draft.counted_from = draft.uses.len() / 2;
    let both = fast.start..slow.end;
    draft.finish(format!("two jobs, 3 to 1, c = {share}"), share, &both, &["fast", "slow"])
}

/// One job in passes, and one that begins when the first has filled the cache.
pub(super) fn late_job(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let old = draft.add("one/", OBJECTS, 0);
    let new = draft.add("two/", OBJECTS, 1);
    draft.epochs(&old, 3);
    let (first, second) = (draft.orders(&old, 8), draft.orders(&new, 8));
    draft.mix(&first, &second, 0.5);
    draft.counted_from = 9 * OBJECTS;
    let both = old.start..new.end;
    draft.finish(format!("a second job, c = {share}"), share, &both, &["old", "new"])
}

/// One job in passes, one that draws by popularity.
pub(super) fn passes_and_zipf(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let train = draft.add("train/", OBJECTS, 0);
    let models = draft.add("models/", OBJECTS, 1);
    let first = draft.orders(&train, 12);
    let second = draft.zipf(&models, 1.0, 12 * OBJECTS);
    draft.mix(&first, &second, 0.5);
    draft.counted_from = draft.uses.len() / 4;
    let both = train.start..models.end;
    draft.finish(format!("passes and Zipf, c = {share}"), share, &both, &["passes", "Zipf"])
}

/// A data set that is read once while another is trained on.
pub(super) fn passes_and_scan(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let train = draft.add("train/", OBJECTS, 0);
    let once = draft.add("archive/", 4 * OBJECTS, 1);
    draft.epochs(&train, 2);
    draft.count_from_here();
    let (first, second) = (draft.orders(&train, 4), draft.orders(&once, 1));
    draft.mix(&first, &second, 0.5);
    draft.finish(format!("passes beside a scan, c = {share}"), share, &train, &["passes", "scan"])
}

/// After some passes the job moves to another data set; counted from the second pass over it.
pub(super) fn shift(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let old = draft.add("old/", OBJECTS, 0);
    let new = draft.add("new/", OBJECTS, 0);
    draft.epochs(&old, 4);
    draft.epochs(&new, 1);
    draft.count_from_here();
    draft.epochs(&new, 3);
    draft.finish(format!("another data set, c = {share}"), share, &new, &[])
}

/// The same, where nothing but the names of the files tells the two apart; from the third pass.
pub(super) fn shift_unseen(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let old = draft.add("", OBJECTS, 0);
    let new = draft.add("n", OBJECTS, 0);
    draft.epochs(&old, 4);
    draft.epochs(&new, 2);
    draft.count_from_here();
    draft.epochs(&new, 3);
    draft.finish(format!("another, same prefix, c = {share}"), share, &new, &[])
}

/// Sequential files through a shuffle buffer of a tenth of the set.
pub(super) fn shuffle_buffer(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let set = draft.add("train/", OBJECTS, 0);
    for epoch in 0..5 {
        let mut buffer: Vec<u32> = Vec::new();
        for number in set.clone() {
            buffer.push(number);
            if buffer.len() > OBJECTS / 10 {
                let at = draft.random.below(buffer.len());
                draft.uses.push(buffer.swap_remove(at));
            }
        }
        draft.random.shuffle(&mut buffer);
        draft.uses.extend(buffer);
        if epoch == 0 {
            draft.count_from_here();
        }
    }
    draft.finish(format!("shuffle buffer, c = {share}"), share, &set, &[])
}

/// Eight ranks, each with its part of a new order, at paces of their own; no barrier between passes.
pub(super) fn ranks(share: f64, seed: u64) -> Trace {
    const RANKS: usize = 8;
    let mut draft = Draft::new(seed);
    let set = draft.add("train/", OBJECTS, 0);
    let epochs: Vec<Vec<u32>> = (0..5).map(|_| draft.shuffled(&set)).collect();
    let part = OBJECTS / RANKS;
    let mut at = [0; RANKS];
    let end = part * epochs.len();
    while at.iter().any(|done| *done < end) {
        let rank = draft.random.below(RANKS);
        let slowest = at.iter().copied().min().unwrap_or(0);
        // Gradients are exchanged each step, so no rank runs away; a loader prefetches a little.
        if at[rank] >= end || at[rank] > slowest + 64 {
            continue;
        }
        let (epoch, within) = (at[rank] / part, at[rank] % part);
        draft.uses.push(epochs[epoch][rank * part + within]);
        at[rank] += 1;
    }
    draft.counted_from = part * RANKS;
    draft.finish(format!("8 ranks, c = {share}"), share, &set, &[])
}

/// Four ranks that all read every object, in lockstep but for a few objects. Not among the generated
/// ones: three of four uses are hits of the memory tier, which the simulator has not.
#[cfg(test)]
pub(super) fn lockstep(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let set = draft.add("train/", OBJECTS, 0);
    for epoch in 0..5 {
        let order = draft.shuffled(&set);
        for batch in order.chunks(8) {
            for _ in 0..4 {
                draft.uses.extend(batch);
            }
        }
        if epoch == 0 {
            draft.count_from_here();
        }
    }
    draft.finish(format!("4 ranks in lockstep, c = {share}"), share, &set, &[])
}

/// Shuffled passes over objects from 8 KiB to 8 MiB.
pub(super) fn sizes(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let mut random = Random(seed ^ 0x77);
    let drawn: Vec<u64> =
        (0..OBJECTS).map(|_| size(8_192.0 * 1_024_f64.powf(random.unit()))).collect();
    let set = draft.add_sized("train/", OBJECTS, 0, |n| drawn[n]);
    draft.epochs(&set, 1);
    draft.count_from_here();
    draft.epochs(&set, 4);
    draft.finish(format!("sizes of 8 KiB to 8 MiB, c = {share}"), share, &set, &[])
}

/// Passes with an evaluation on a tenth as many objects after each.
pub(super) fn evaluation(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let train = draft.add("data/train/", OBJECTS, 0);
    let eval = draft.add("data/val/", OBJECTS / 10, 0);
    for epoch in 0..7 {
        draft.epochs(&train, 1);
        draft.uses.extend(eval.clone());
        if epoch == 1 {
            draft.count_from_here();
        }
    }
    let both = train.start..eval.end;
    draft.finish(format!("training and evaluation, c = {share}"), share, &both, &[])
}

/// Six directories, read one after the other, each shuffled.
pub(super) fn parts(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let parts: Vec<Range> =
        (0..6).map(|n| draft.add(&format!("data/part-{n}/"), OBJECTS / 6, 0)).collect();
    for epoch in 0..5 {
        for part in &parts {
            draft.epochs(part, 1);
        }
        if epoch == 0 {
            draft.count_from_here();
        }
    }
    let all = 0..draft.objects.len() as u32;
    draft.finish(format!("6 parts in turn, c = {share}"), share, &all, &[])
}

/// A directory for each of a thousand classes, shuffled over all.
pub(super) fn classes(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    for class in 0..1_000 {
        draft.add(&format!("imagenet/train/n{class:08}/"), OBJECTS / 1_000, 0);
    }
    let all = 0..draft.objects.len() as u32;
    draft.epochs(&all, 1);
    draft.count_from_here();
    draft.epochs(&all, 4);
    draft.finish(format!("1,000 class folders, c = {share}"), share, &all, &[])
}

/// A job that breaks off six times in its first pass and begins anew, in another order.
pub(super) fn restarts(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let set = draft.add("train/", OBJECTS, 0);
    for part in [20, 20, 20, 20, 3, 3] {
        let order = draft.shuffled(&set);
        draft.uses.extend(&order[..OBJECTS / part]);
    }
    draft.epochs(&set, 1);
    draft.count_from_here();
    draft.epochs(&set, 3);
    draft.finish(format!("restarts, c = {share}"), share, &set, &[])
}

/// Passes over a growing part of the set.
pub(super) fn curriculum(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let set = draft.add("train/", OBJECTS, 0);
    for fifths in 1..=5 {
        draft.epochs(&(0..OBJECTS as u32 / 5 * fifths), 1);
    }
    draft.count_from_here();
    draft.epochs(&set, 3);
    draft.finish(format!("a growing set, c = {share}"), share, &set, &[])
}

/// Eight evaluations in a pass, on a twentieth as many objects.
pub(super) fn frequent_evaluation(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let train = draft.add("data/train/", OBJECTS, 0);
    let eval = draft.add("data/val/", OBJECTS / 20, 0);
    for epoch in 0..6 {
        let order = draft.shuffled(&train);
        for part in order.chunks(OBJECTS / 8) {
            draft.uses.extend(part);
            draft.uses.extend(eval.clone());
        }
        if epoch == 0 {
            draft.count_from_here();
        }
    }
    let both = train.start..eval.end;
    draft.finish(format!("8 evaluations a pass, c = {share}"), share, &both, &[])
}

/// Models of ten files each, loaded whole, by popularity.
pub(super) fn models(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let models: Vec<Range> =
        (0..20).map(|n| draft.add_sized(&format!("models/m{n}/"), 10, 0, |_| 5 << 30)).collect();
    for number in draft.zipf(&(0..20), 1.0, 2_000) {
        draft.uses.extend(models[number as usize].clone());
    }
    let all = 0..draft.objects.len() as u32;
    draft.finish(format!("20 models, Zipf 1, c = {share}"), share, &all, &[])
}

/// Each use within a tenth of the set, which moves on.
pub(super) fn moving_window(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let set = draft.add("log/", OBJECTS, 0);
    let window = OBJECTS / 10;
    for at in 0..20 * OBJECTS {
        let start = (at / 20).min(OBJECTS - window);
        draft.uses.push((start + draft.random.below(window)) as u32);
    }
    draft.finish(format!("a moving window, c = {share}"), share, &set, &[])
}

/// Four jobs, each in passes of its own over one set.
pub(super) fn sweep(share: f64, seed: u64) -> Trace {
    let mut draft = Draft::new(seed);
    let set = draft.add("train/", OBJECTS, 0);
    let jobs: Vec<Vec<u32>> = (0..4).map(|_| draft.orders(&set, 4)).collect();
    for at in 0..4 * OBJECTS {
        if at == OBJECTS {
            draft.count_from_here();
        }
        draft.uses.extend(jobs.iter().map(|job| job[at]));
    }
    draft.finish(format!("4 orders of one set, c = {share}"), share, &set, &[])
}

/// The traces of `warpdrive simulate`.
pub fn generated() -> Vec<Trace> {
    let mut traces = Vec::new();
    traces.extend([0.25, 0.5, 0.75, 0.9].map(|share| shuffled_epochs(share, 1)));
    traces.extend([0.25, 0.5, 0.75, 0.9].map(sequential_epochs));
    traces.extend([0.7, 0.8, 0.9, 1.0, 1.1, 1.2].map(|alpha| zipf(alpha, 0.1, 2)));
    traces.extend([0.25, 0.5].map(|share| two_jobs(share, 3)));
    traces.push(late_job(0.4, 4));
    traces.push(passes_and_zipf(0.3, 5));
    traces.push(passes_and_scan(0.5, 6));
    traces.extend([0.25, 0.5, 0.75, 0.9].map(|share| shift(share, 7)));
    traces.push(shift_unseen(0.5, 8));
    traces.push(shuffle_buffer(0.5, 9));
    traces.push(ranks(0.5, 10));
    traces.push(sizes(0.5, 12));
    traces.push(evaluation(0.5, 13));
    traces.push(parts(0.5, 14));
    traces.push(classes(0.5, 15));
    traces.push(restarts(0.5, 16));
    traces.push(curriculum(0.5, 17));
    traces.extend([0.25, 0.5].map(|share| frequent_evaluation(share, 18)));
    traces.extend([0.25, 0.5].map(|share| models(share, 19)));
    traces.push(moving_window(0.1, 20));
    traces.push(sweep(0.5, 21));
    traces
}
