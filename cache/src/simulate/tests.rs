//! The goals of the policy, on traces with fixed seeds, and what it costs.

use super::generate::{self, Draft};
use super::*;
use crate::{Activity, Mode, Why};

/// Of the optimum that a policy without knowledge of the future can reach.
const GOAL: f64 = 0.97;

fn ours(trace: &Trace) -> (Reached, Vec<SetReport>) {
    let mut ours = Ours::new(trace, Retention::Auto);
    let reached = play(trace, &mut ours);
    (reached, ours.policy.report())
}

fn assert_reaches(trace: &Trace, wanted: f64) {
    let (reached, sets) = ours(trace);
    let rate = reached.all.of_uses();
    assert!(rate >= GOAL * wanted, "{}: {rate:.3} of {wanted:.3}: {sets:?}", trace.name);
}

#[test]
fn epochs_reach_the_share_of_the_cache_from_the_second_pass_on() {
    for share in [0.1, 0.25, 0.5, 0.75, 0.9] {
        for seed in 1..4 {
            let whole = generate::shuffled_epochs(share, seed);
            assert_reaches(&whole, share);
            let mut second = whole;
            second.uses.truncate(2 * second.counted_from);
            assert_reaches(&second, share);
        }
        let mut second = generate::sequential_epochs(share);
        assert_reaches(&second, share);
        second.uses.truncate(2 * second.counted_from);
        assert_reaches(&second, share);
    }
}

#[test]
fn epochs_over_few_objects_reach_it_too() {
    for objects in [40, 200, 1_000] {
        for share in [0.25, 0.5, 0.9] {
            let mut draft = Draft::new(objects as u64);
            let set = draft.add("shards/", objects, 0);
            draft.epochs(&set, 1);
            draft.count_from_here();
            draft.epochs(&set, 5);
            assert_reaches(&draft.finish("few", share, &set, &[]), share);
        }
    }
}

#[test]
fn zipf_is_within_three_percent_of_s3fifo() {
    for alpha in [0.7, 0.8, 0.9, 1.0, 1.1, 1.2] {
        for share in [0.01, 0.1, 0.3] {
            let trace = generate::zipf(alpha, share, 2);
            let theirs = play(&trace, &mut reference::S3Fifo::new(trace.capacity_bytes));
            let (reached, sets) = ours(&trace);
            let (rate, wanted) = (reached.all.of_uses(), theirs.all.of_uses());
            assert!(rate >= 0.97 * wanted, "{}: {rate:.3} of {wanted:.3}", trace.name);
            assert_eq!((sets[0].mode, sets[0].why), (Mode::Evict, Why::SomeReturnEarly));
        }
    }
}

#[test]
fn another_data_set_is_at_its_optimum_after_one_pass() {
    for share in [0.25, 0.5, 0.75, 0.9] {
        assert_reaches(&generate::shift(share, 7), share);
        let (_, sets) = ours(&generate::shift(share, 8));
        assert_eq!(sets[1].activity, Activity::Idle, "{sets:?}");
    }
}

#[test]
fn another_data_set_under_the_same_prefix_is_found_out() {
    for share in [0.25, 0.5, 0.75] {
        assert_reaches(&generate::shift_unseen(share, 8), share);
    }
}

#[test]
fn of_two_jobs_neither_ruins_the_other() {
    for share in [0.1, 0.25, 0.5, 0.75] {
        for trace in [generate::two_jobs(share, 3), generate::late_job(share, 4)] {
            // Alone in half of the cache, each would reach the same share of its own objects.
            for (job, rate) in ours(&trace).0.jobs {
                let rate = rate.of_uses();
                assert!(rate >= GOAL * share, "{}, {job}: {rate:.3}", trace.name);
            }
        }
    }
}

#[test]
fn passes_and_popularity_share_a_cache() {
    for share in [0.1, 0.3, 0.5] {
        let trace = generate::passes_and_zipf(share, 5);
        let (reached, sets) = ours(&trace);
        let mut alone = trace.clone().with_capacity(trace.capacity_bytes / 2);
        let from = alone.uses[..alone.counted_from]
            .iter()
            .filter(|n| alone.objects[**n as usize].job == 1)
            .count();
        alone.uses.retain(|n| alone.objects[*n as usize].job == 1);
        alone.counted_from = from;
        let half = play(&alone, &mut reference::S3Fifo::new(alone.capacity_bytes));
        let rates: Vec<f64> = reached.jobs.iter().map(|(_, rate)| rate.of_uses()).collect();
        assert!(rates[0] >= GOAL * share, "passes: {rates:?}");
        assert!(rates[1] >= GOAL * half.all.of_uses(), "Zipf: {rates:?}, {:?}", half.all);
        let modes: Vec<Mode> = sets.iter().map(|set| set.mode).collect();
        assert_eq!(modes, [Mode::Evict, Mode::Keep], "{sets:?}");
    }
}

#[test]
fn a_scan_takes_nothing_from_passes() {
    let (reached, _) = ours(&generate::passes_and_scan(0.5, 6));
    assert!(reached.jobs[0].1.of_uses() >= GOAL * 0.5, "{reached:?}");
}

#[test]
fn the_ways_of_loaders_are_passes() {
    for share in [0.25, 0.5, 0.75] {
        assert_reaches(&generate::shuffle_buffer(share, 9), share);
        assert_reaches(&generate::ranks(share, 10), share);
        assert_reaches(&generate::lockstep(share, 11), share);
        assert_reaches(&generate::evaluation(share, 13), share);
        assert_reaches(&generate::parts(share, 14), share);
        assert_reaches(&generate::classes(share, 15), share);
        let (reached, _) = ours(&generate::sizes(share, 12));
        assert!(reached.all.of_bytes() >= GOAL * share, "{share}: {reached:?}");
    }
}

#[test]
fn interrupted_and_growing_passes_are_passes() {
    for share in [0.25, 0.5, 0.75] {
        assert_reaches(&generate::restarts(share, 16), share);
        assert_reaches(&generate::curriculum(share, 17), share);
    }
}

#[test]
fn sets_that_are_read_more_often_displace_those_that_rest() {
    for share in [0.25, 0.5, 0.75] {
        for trace in [generate::frequent_evaluation(share, 18), generate::models(share, 19)] {
            let theirs = play(&trace, &mut reference::S3Fifo::new(trace.capacity_bytes));
            let (rate, wanted) = (ours(&trace).0.all.of_uses(), theirs.all.of_uses());
            assert!(rate >= wanted, "{}: {rate:.3}, S3-FIFO {wanted:.3}", trace.name);
        }
    }
}

#[test]
fn recency_is_left_to_s3fifo() {
    for share in [0.05, 0.1, 0.15] {
        let trace = generate::moving_window(share, 20);
        let theirs = play(&trace, &mut reference::S3Fifo::new(trace.capacity_bytes));
        let (rate, wanted) = (ours(&trace).0.all.of_uses(), theirs.all.of_uses());
        assert!(rate >= 0.97 * wanted, "{}: {rate:.3}, S3-FIFO {wanted:.3}", trace.name);
    }
}

#[test]
fn a_kept_set_is_not_written_again_and_again() {
    let (reached, _) = ours(&generate::shuffled_epochs(0.5, 1));
    assert_eq!(reached.written_objects, 5_000);
    let (reached, _) = ours(&generate::late_job(0.5, 4));
    // Half of the cache changes hands once.
    assert!(reached.written_objects < 17_000, "{reached:?}");
}

#[test]
fn a_pin_overrides_what_is_seen() {
    let zipf = generate::zipf(1.0, 0.1, 2);
    let kept = run_pinned(&zipf, Retention::Keep);
    assert_eq!(kept.ours.written_objects, 1_000);
    assert_eq!((kept.sets[0].mode, kept.sets[0].why), (Mode::Keep, Why::Pinned));
    let epochs = generate::shuffled_epochs(0.5, 1);
    let evicting = run_pinned(&epochs, Retention::Evict);
    assert_eq!((evicting.sets[0].mode, evicting.sets[0].why), (Mode::Evict, Why::Pinned));
    let difference = evicting.ours.all.of_uses() - evicting.s3fifo.all.of_uses();
    assert!(difference.abs() < 0.02, "{evicting:?}");
}

#[test]
fn the_work_is_constant_for_each_use() {
    let steps = |trace: &Trace| {
        let mut ours = Ours::new(trace, Retention::Auto);
        play(trace, &mut ours);
        ours.policy.steps() as f64 / trace.uses() as f64
    };
    for trace in generated() {
        let steps = steps(&trace);
        assert!(steps < 16.0, "{}: {steps}", trace.name());
    }
    let of = |objects: usize| {
        let mut draft = Draft::new(3);
        let set = draft.add("models/", objects, 0);
        draft.uses = draft.zipf(&set, 0.9, 10 * objects);
        steps(&draft.finish("", 0.1, &set, &[]))
    };
    let (few, many) = (of(2_000), of(40_000));
    assert!(many < 1.5 * few, "{few} and {many}");
}

#[test]
fn a_tier_that_evicts_ahead_loses_nothing_that_is_kept() {
    // As the file tier does it: above the high water a victim each, then what can be spared down to the low.
    let trace = generate::shift(0.5, 7);
    let low = trace.capacity_bytes - trace.capacity_bytes / 10;
    let mut ours = Ours::new(&trace, Retention::Auto);
    let mut rate = HitRate::default();
    for (at, number) in trace.uses.iter().enumerate() {
        let object = &trace.objects[*number as usize];
        let full = ours.used_bytes + object.bytes > ours.capacity_bytes;
        let is_hit = ours.hit(*number, object);
        while !is_hit && full && ours.used_bytes > low {
            let Some(spare) = ours.policy.spare() else { break };
            assert!(ours.resident.contains_key(&spare));
            ours.gone(spare);
        }
        if at >= trace.counted_from {
            rate.count(is_hit, object.bytes);
        }
    }
    assert!(rate.of_uses() >= GOAL * 0.5, "{rate:?}");
    assert_eq!(ours.used_bytes, ours.policy.resident_bytes());
    assert_eq!(ours.resident.len(), ours.policy.resident_objects());
}

#[test]
fn what_a_restart_finds_is_kept_by_the_job_that_goes_on() {
    let trace = generate::shuffled_epochs(0.5, 1);
    let mut ours = Ours::new(&trace, Retention::Auto);
    for object in &trace.objects[..5_000] {
        ours.policy.inserted(object.set, object.item, object.bytes);
        ours.resident.insert(object.item, object.bytes);
        ours.used_bytes += object.bytes;
    }
    // The first pass after the restart, as good as any.
    let mut first = trace.clone();
    first.counted_from = 0;
    first.uses.truncate(10_000);
    let reached = play(&first, &mut ours);
    assert!(reached.all.of_uses() >= GOAL * 0.5, "{reached:?}");
}

#[test]
fn traces_are_the_same_each_time() {
    for (one, other) in generated().iter().zip(&generated()) {
        assert_eq!(one.uses, other.uses, "{}", one.name());
        assert!(one.uses() >= one.objects() && one.capacity_bytes() > 0);
    }
}
