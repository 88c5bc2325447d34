//! How well a link is filled, by a clock that is exact: what a reader gets of what the link carries.

use futures::{StreamExt, stream};

use super::vast::{Front, Vast};
use super::*;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 1 << 30;
const RATE: u64 = 500 * MIB;
const TRIP: Duration = Duration::from_millis(20);

async fn behind_a_link() -> Front {
    let vast = Vast::new([("k".to_owned(), SIZE)]).behind(TRIP, RATE);
    let config = CacheConfig { memory_bytes: 768 * MIB, ..CacheConfig::default() };
    Front::new(vast, config).await
}

/// The time of a reader that has `depth` reads of `step` bytes in flight, as a kernel's readahead has.
async fn read_all(front: &Front, step: u64, depth: usize) -> Duration {
    let since = tokio::time::Instant::now();
    front.store.head(&key("k")).await.unwrap();
    stream::iter((0..SIZE).step_by(step as usize))
        .map(|at| async move {
            let range = ByteRange::Bounded(at, at + step);
            let options = GetOptions { range, reader: ReaderId(1), ..GetOptions::default() };
            let mut got = front.store.get(&key("k"), options).await.unwrap();
            let mut bytes = 0;
            while let Some(piece) = got.body.try_next().await.unwrap() {
                bytes += piece.len() as u64;
            }
            assert_eq!(bytes, step);
        })
        .buffered(depth)
        .collect::<Vec<()>>()
        .await;
    since.elapsed()
}

/// The time of eight connections that read ranges of 8 MiB from the origin itself.
async fn direct() -> Duration {
    let front = behind_a_link().await;
    let origin = vast::Shown(Arc::clone(&front.vast));
    let since = tokio::time::Instant::now();
    stream::iter((0..SIZE).step_by(8 << 20))
        .map(|at| {
            let origin = origin.clone();
            async move {
                let range = ByteRange::Bounded(at, at + 8 * MIB);
                let got =
                    origin.get(&key("k"), GetOptions { range, ..GetOptions::default() }).await;
                got.unwrap().body.try_for_each(|_| async { Ok(()) }).await.unwrap();
            }
        })
        .buffer_unordered(8)
        .collect::<Vec<()>>()
        .await;
    since.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_cold_sequential_reader_gets_nine_tenths_of_the_link() {
    let direct = direct().await;
    for (step, depth) in [(128 << 10, 8), (MIB, 2), (MIB, 1), (8 * MIB, 8)] {
        let front = behind_a_link().await;
        let took = read_all(&front, step, depth).await;
        let ratio = direct.as_secs_f64() / took.as_secs_f64();
        assert!(ratio >= 0.9, "{ratio:.3} of the link in reads of {step} bytes, {depth} at once");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_the_link_is_faster_than_waits_only_at_the_start() {
    let front = behind_a_link().await;
    front.store.head(&key("k")).await.unwrap();
    let mut late = 0;
    for at in (0..256 * MIB).step_by(1 << 20) {
        let since = tokio::time::Instant::now();
        let range = ByteRange::Bounded(at, at + MIB);
        let options = GetOptions { range, reader: ReaderId(1), ..GetOptions::default() };
        read(&front.store, "k", options).await.unwrap();
        late += u32::from(at >= 24 * MIB && since.elapsed() > Duration::from_millis(1));
        // A reader of 200 MiB a second.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(late, 0, "reads after the ramp that waited");
}
