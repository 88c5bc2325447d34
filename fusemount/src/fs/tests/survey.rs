//! Names that are looked up and were never listed: what they cost, and that they are right.

use futures::future::join_all;

use super::*;

fn name(n: usize) -> String {
    format!("{n:05}.tar")
}

/// `count` files in `d`, which is known.
async fn files(f: &Fixture, count: usize) -> NodeId {
    for n in 0..count {
        f.store.insert(&format!("d/{}", name(n)), "x");
    }
    let id = f.walk("data/d").await.unwrap().id;
    f.faulty.calls().reset();
    id
}

async fn look(f: &Fixture, directory: NodeId, name: &str) -> Result<Attributes> {
    f.fs.lookup(directory, OsStr::new(name), NONE).await
}

#[tokio::test(start_paused = true)]
async fn opening_the_files_of_a_directory_in_any_order_costs_one_listing() {
    let f = fixture(LONG, 1000);
    let directory = files(&f, 3000).await;
    for n in 0..3000 {
        let file = look(&f, directory, &name(n * 1787 % 3000)).await.unwrap();
        f.fs.open(file.id, NONE).await.unwrap();
    }
    // Three pages; the first name is asked for by itself. HEADs are what a cache answers that has
    // seen these pages: one for the lookup, one for the open.
    assert_eq!(f.faulty.calls().of(Operation::List), 4);
    assert_eq!(f.faulty.calls().of(Operation::Head), 6000);
}

#[tokio::test(start_paused = true)]
async fn one_name_of_a_directory_costs_no_page() {
    let f = fixture(LONG, 1000);
    let directory = files(&f, 50).await;
    look(&f, directory, &name(7)).await.unwrap();
    assert_eq!(f.faulty.calls().of(Operation::Head), 1);
    assert_eq!(f.faulty.calls().of(Operation::List), 1, "whether it is a directory");
}

#[tokio::test(start_paused = true)]
async fn pages_that_do_not_help_are_bounded() {
    let f = fixture(LONG, 1);
    let directory = files(&f, 1000).await;
    // From the end, while a page shows one name from the beginning.
    for n in (500..1000).rev() {
        look(&f, directory, &name(n)).await.unwrap();
    }
    let pages = f.faulty.calls().of(Operation::List) - 500;
    assert!((64..=64 + 500 / 2).contains(&pages), "{pages}");
}

#[tokio::test(start_paused = true)]
async fn many_at_once_wait_for_the_same_pages() {
    let f = fixture(LONG, 100);
    let directory = files(&f, 1000).await;
    look(&f, directory, &name(0)).await.unwrap();
    f.faulty.calls().reset();
    for _ in 0..200 {
        f.faulty.inject(Operation::List, Fault::Delay(Duration::from_millis(50)));
    }
    let names: Vec<String> = (0..1000).map(name).collect();
    for found in join_all(names.iter().map(|name| look(&f, directory, name))).await {
        assert_eq!(found.unwrap().size, 1);
    }
    let lists = f.faulty.calls().of(Operation::List);
    assert!(lists < 1000, "{lists} for ten pages and the names that were not waited for");
    f.faulty.clear();
    f.faulty.calls().reset();
    for name in &names {
        look(&f, directory, name).await.unwrap();
    }
    assert!(f.faulty.calls().of(Operation::List) <= 10, "by now all are known");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_a_listing_did_not_show_is_found_at_once() {
    let f = fixture(LONG, 1000);
    let directory = files(&f, 50).await;
    for n in 0..10 {
        look(&f, directory, &name(n)).await.unwrap();
    }
    assert_eq!(look(&f, directory, "new").await.unwrap_err().errno, Errno::NOENT);
    f.store.insert("d/new", "x");
    assert_eq!(look(&f, directory, "new").await.unwrap().size, 1);
    f.store.insert("d/other/below", "x");
    assert!(look(&f, directory, "other").await.unwrap().directory);
    f.store.insert(&format!("d/{}", name(3)), "longer");
    assert_eq!(look(&f, directory, &name(3)).await.unwrap().size, 6);
    f.store.remove(&format!("d/{}", name(4)));
    assert_eq!(look(&f, directory, &name(4)).await.unwrap_err().errno, Errno::NOENT);
}

#[tokio::test(start_paused = true)]
async fn a_page_that_fails_or_hangs_costs_no_name_and_is_not_asked_for_again() {
    for fault in [Fault::Fail(ErrorKind::PermissionDenied), Fault::Hang] {
        let f = fixture(LONG, 1000);
        let directory = files(&f, 50).await;
        look(&f, directory, &name(0)).await.unwrap();
        f.faulty.inject(Operation::List, fault.clone());
        f.faulty.inject(Operation::List, fault);
        let began = tokio::time::Instant::now();
        assert_eq!(look(&f, directory, &name(1)).await.unwrap().size, 1);
        assert!(began.elapsed() <= Duration::from_secs(2), "the patience, for each of two");
        f.faulty.calls().reset();
        look(&f, directory, &name(2)).await.unwrap();
        assert_eq!(f.faulty.calls().of(Operation::List), 1, "by its name");
    }
}

#[tokio::test(start_paused = true)]
async fn names_past_their_ttl_are_renewed_by_pages() {
    let f = fixture(Duration::from_secs(5), 1000);
    let directory = files(&f, 500).await;
    for _ in 0..3 {
        f.faulty.calls().reset();
        for n in 0..500 {
            look(&f, directory, &name(n)).await.unwrap();
        }
        assert!(f.faulty.calls().of(Operation::List) <= 2);
        tokio::time::advance(Duration::from_secs(6)).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_is_looked_up_is_that_of_the_model_in_any_order(
        keys in prop::collection::btree_set(key(), 1..40),
        order in prop::collection::vec((0..1000usize, 0..14usize), 1..60),
        page in 1..5usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let f = fixture(LONG, page);
            for key in &keys {
                f.store.insert(key, content(key, 1));
            }
            let keys: BTreeMap<String, Vec<u8>> =
                keys.into_iter().map(|key| (key.clone(), content(&key, 1))).collect();
            let names = ["a", "a-", "a.txt", "a0", "b", "\u{e9}", " ", "%2F", "no"];
            for (place, which) in order {
                // A directory that there is, and a name that may be in it.
                let mut prefix = String::new();
                for round in 0..place % 3 {
                    let inner: Vec<String> = model_directory(&keys, &prefix).into_iter()
                        .filter_map(|(name, directory)| directory.then_some(name)).collect();
                    let Some(name) = inner.get((place >> round) % inner.len().max(1)) else { break };
                    prefix = format!("{prefix}{name}/");
                }
                let name = names[which % names.len()];
                let id = f.walk(&format!("data/{prefix}")).await.unwrap().id;
                let found = look(&f, id, name).await;
                match model_directory(&keys, &prefix).get(name) {
                    None => prop_assert_eq!(found.unwrap_err().errno, Errno::NOENT),
                    Some(directory) => {
                        let found = found.unwrap();
                        prop_assert_eq!(found.directory, *directory, "{}{}", prefix, name);
                        if !directory {
                            let size = keys[&format!("{prefix}{name}")].len() as u64;
                            prop_assert_eq!(found.size, size);
                        }
                    }
                }
            }
            Ok(())
        })?;
    }
}
