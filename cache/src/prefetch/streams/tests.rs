//! Courses that readers take, and what is asked for them.

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { first: 400, most: 3200, step: 800, block: 100 };
const SIZE: u64 = 1_000_000;

fn run(reads: impl IntoIterator<Item = Range<u64>>) -> Vec<Plan> {
    let mut streams = Streams::default();
    reads.into_iter().map(|read| streams.observe(1, &read, SIZE, LIMITS)).collect()
}

fn pieces(order: impl IntoIterator<Item = u64>) -> impl Iterator<Item = Range<u64>> {
    order.into_iter().map(|n| n * 100..n * 100 + 100)
}

fn asked(plans: &[Plan]) -> u64 {
    plans.iter().flat_map(|p| &p.ranges).map(|r| r.end - r.start).sum()
}

#[test]
fn a_sequential_reader_gets_a_window_that_grows_with_what_was_read() {
    let plans = run(pieces(0..400));
    let asked: Vec<_> = plans.iter().flat_map(|p| p.ranges.clone()).collect();
    assert_eq!(asked[0], 200..1000, "four times what was read");
    assert!(asked.windows(2).all(|w| w[0].end == w[1].start), "no gap, nothing twice");
    assert!(asked.last().unwrap().end >= 40_000 + LIMITS.most - LIMITS.step, "{asked:?}");
    let whole: u64 = asked.iter().map(|r| r.end - r.start).sum();
    assert!(whole <= 40_000 + 3200);
    assert!(!plans[0].dense && plans[1..].iter().all(|p| p.dense));
}

#[test]
fn a_header_and_its_continuation_are_no_sequence_yet() {
    let plans = run([0..8, 8..90, 90..150]);
    assert_eq!(plans[..2], [Plan::default(), Plan::default()]);
    assert!(plans[2].dense);
}

#[test]
fn a_footer_read_from_its_end_asks_for_nothing() {
    let mut streams = Streams::default();
    for read in [SIZE - 8..SIZE, SIZE - 80..SIZE - 8, SIZE - 90..SIZE - 80] {
        let plan = streams.observe(1, &read, SIZE, LIMITS);
        assert!(plan.ranges.is_empty());
    }
}

#[test]
fn a_burst_in_disorder_is_one_stream() {
    // As a kernel sends what `WILLNEED` asked for, and as the connections of one transfer arrive.
    let order = [3, 0, 5, 1, 4, 2, 9, 7, 6, 8, 11, 10, 14, 13, 12, 15];
    let mut streams = Streams::default();
    for (n, read) in pieces(order).enumerate() {
        streams.observe(n as u64 % 4, &read, SIZE, LIMITS);
    }
    assert_eq!(streams.held.len(), 1);
    let stream = &streams.held[0];
    assert_eq!((stream.start, stream.frontier), (0, 1600));
    assert!(stream.is_sequential(LIMITS));
    assert!(stream.ahead > 1600);
}

#[test]
fn several_connections_that_read_ranges_in_turns_are_one_stream() {
    let mut streams = Streams::default();
    let mut bytes = 0;
    for n in 0..64u64 {
        // Eight at once, each the range that comes next, every second pair swapped.
        let at = if n % 4 == 1 {
            n + 1
        } else if n % 4 == 2 {
            n - 1
        } else {
            n
        };
        let plan = streams.observe(n % 8, &(at * 800..at * 800 + 800), SIZE, LIMITS);
        bytes += plan.ranges.iter().map(|r| r.end - r.start).sum::<u64>();
    }
    assert_eq!(streams.held.len(), 1);
    assert!((40_000..=64 * 800 + LIMITS.most).contains(&bytes), "{bytes}");
}

#[test]
fn two_readers_of_one_object_share_one_stream() {
    let mut streams = Streams::default();
    let mut plans = Vec::new();
    for n in 0..100 {
        for reader in 1..3 {
            plans.push(streams.observe(reader, &(n * 100..n * 100 + 100), SIZE, LIMITS));
        }
    }
    assert_eq!(streams.held.len(), 1);
    assert!(asked(&plans) <= 10_000 + LIMITS.most);
}

#[test]
fn interleaved_readers_of_different_parts_are_several_streams() {
    let mut streams = Streams::default();
    let mut plans = Vec::new();
    for n in 0..50 {
        for part in 0..4u64 {
            let at = part * 200_000 + n * 100;
            plans.push(streams.observe(1, &(at..at + 100), SIZE, LIMITS));
        }
    }
    assert_eq!(streams.held.len(), 4);
    assert!(streams.held.iter().all(|s| s.frontier - s.start == 5000 && s.ahead > s.frontier));
    assert!(plans[8..].iter().all(|p| p.dense));
}

#[test]
fn another_pass_over_the_same_object_is_read_ahead_for_again() {
    let mut streams = Streams::default();
    for _ in 0..3 {
        let plans: Vec<_> =
            pieces(0..200).map(|read| streams.observe(1, &read, 20_000, LIMITS)).collect();
        assert!(asked(&plans) > 15_000, "{}", asked(&plans));
        assert_eq!(plans.iter().filter(|p| p.ending).count(), 1);
    }
}

#[test]
fn a_jump_begins_small_again() {
    let mut streams = Streams::default();
    for read in pieces(0..50) {
        streams.observe(1, &read, SIZE, LIMITS);
    }
    let mut next = |at: u64| streams.observe(1, &(at..at + 100), SIZE, LIMITS);
    assert_eq!(next(500_000), Plan::default());
    let plan = next(500_100);
    assert_eq!(plan.ranges, vec![500_200..501_000]);
}

#[test]
fn random_reads_and_reading_again_ask_for_nothing() {
    let at = [7, 9000, 330, 5120, 76, 3000, 9801, 4, 6500, 2110u64];
    assert!(run(at.map(|n| n * 100..n * 100 + 4)).iter().all(|p| *p == Plan::default()));
    assert!(run((0..20).map(|_| 500..504)).iter().all(|p| *p == Plan::default()));
}

#[test]
fn sparse_strides_are_foreseen_in_both_directions_and_only_what_they_read() {
    let plans = run((0..6).map(|n| n * 5000..n * 5000 + 100));
    assert_eq!(plans[3].ranges, vec![20_000..20_100]);
    assert_eq!(plans[4].ranges.len(), 2);
    assert!(plans.iter().all(|p| !p.dense));
    let plans = run((0..6).map(|n| 90_000 - n * 5000..90_100 - n * 5000));
    assert_eq!(plans[3].ranges, vec![70_000..70_100]);
}

#[test]
fn dense_strides_get_whole_blocks() {
    let plans = run((0..100).map(|n| n * 350..n * 350 + 100));
    assert!(plans[3..].iter().all(|p| p.dense), "{plans:?}");
    assert!(asked(&plans) > 20_000);
}

#[test]
fn nearing_the_end_is_said_once() {
    let mut streams = Streams::default();
    let plans: Vec<_> =
        pieces(0..1000).map(|read| streams.observe(1, &read, 100_000, LIMITS)).collect();
    let ends: Vec<_> = plans.iter().enumerate().filter(|(_, p)| p.ending).collect();
    assert_eq!(ends.len(), 1);
    assert!(ends[0].0 > 900);
}

proptest! {
    #[test]
    fn nothing_past_the_end_or_beyond_the_window(
        reads in proptest::collection::vec((0u64..4000, 1u64..300, 0u64..20), 2..200),
    ) {
        let size = 4300;
        let mut streams = Streams::default();
        for (start, len, reader) in reads {
            let plan = streams.observe(reader, &(start..start + len), size, LIMITS);
            let bytes: u64 = plan.ranges.iter().map(|r| r.end - r.start).sum();
            prop_assert!(bytes <= LIMITS.most);
            for range in plan.ranges {
                prop_assert!(range.start < range.end && range.end <= size);
            }
            prop_assert!(streams.held.len() <= MAX_STREAMS);
            prop_assert!(streams.strides.len() <= MAX_READERS);
        }
    }

    #[test]
    fn any_disorder_that_is_not_too_wild_ends_as_one_stream(
        swaps in proptest::collection::vec(0usize..6, 200),
    ) {
        let mut order: Vec<u64> = (0..200).collect();
        for (n, by) in swaps.iter().enumerate() {
            let other = (n + by).min(199);
            order.swap(n, other);
        }
        let mut streams = Streams::default();
        for (n, read) in pieces(order).enumerate() {
            streams.observe(n as u64 % 3, &read, SIZE, LIMITS);
        }
        let longest = streams.held.iter().map(|s| s.frontier - s.start).max().unwrap();
        prop_assert_eq!(longest, 20_000);
    }

    #[test]
    fn scattered_small_reads_ask_for_next_to_nothing(
        reads in proptest::collection::vec(0u64..524_288, 100),
    ) {
        let limits = Limits { first: 4 << 20, most: 64 << 20, step: 8 << 20, block: 1 << 20 };
        let mut streams = Streams::default();
        let mut wanted = 0;
        for n in reads {
            let plan = streams.observe(1, &(n * 4096..n * 4096 + 4096), 2 << 30, limits);
            wanted += plan.ranges.len();
            prop_assert!(!plan.dense);
        }
        prop_assert_eq!(wanted, 0);
    }
}
