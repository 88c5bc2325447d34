//! Listings over origins of different abilities, against the reference store.

use futures::FutureExt;
use proptest::prelude::*;
use store::Store;
use store::testing::MemoryStore;

use super::*;

/// An origin that can do as little as Azure, or as much as GCS.
struct Origin {
    objects: MemoryStore,
    /// It skips to `after` by itself.
    seeks: bool,
    /// It rolls up at single characters.
    rolls: bool,
    /// It sends more than it is asked for, as an origin does that counts no common prefixes.
    lavish: bool,
}

#[async_trait]
impl RawPages for Origin {
    async fn raw_page(&self, request: RawRequest<'_>) -> Result<RawPage> {
        let page = self
            .objects
            .list(&ListRequest {
                prefix: request.prefix.to_owned(),
                delimiter: request.delimiter.map(str::to_owned),
                start_after: request.after.filter(|_| self.seeks).map(str::to_owned),
                token: request.marker.map(str::to_owned),
                max_keys: if self.lavish { 2 * request.limit + 1 } else { request.limit },
            })
            .await?;
        let objects = page.entries.into_iter();
        let objects = objects.map(|e| RawItem { name: e.key.to_string(), meta: Some(e.meta) });
        let prefixes = page.common_prefixes.into_iter().map(|name| RawItem { name, meta: None });
        Ok(RawPage { items: objects.chain(prefixes).collect(), next: page.next })
    }

    fn rolls_up(&self, delimiter: &str) -> bool {
        self.rolls && delimiter.len() == 1
    }
}

/// Everything, page by page, each of another size; fails when a page is too large.
fn all(
    list: impl Fn(&ListRequest) -> Result<ListPage>,
    mut request: ListRequest,
    sizes: &[usize],
) -> (Vec<String>, Vec<String>) {
    let (mut keys, mut prefixes) = (Vec::new(), Vec::new());
    for size in sizes.iter().cycle().take(1000) {
        request.max_keys = *size;
        let page = list(&request).unwrap();
        assert!(page.entries.len() + page.common_prefixes.len() <= request.max_keys);
        keys.extend(page.entries.iter().map(|e| e.key.to_string()));
        prefixes.extend(page.common_prefixes);
        match page.next {
            Some(token) => request.token = Some(token),
            None => return (keys, prefixes),
        }
    }
    panic!("a listing without end: {request:?}");
}

proptest! {
    #[test]
    fn every_origin_lists_like_the_reference(
        names in prop::collection::btree_set("[ab/-]{1,6}", 1..30),
        prefix in "[ab/]{0,2}",
        delimiter in prop::option::of("/|-|a|ab|/b"),
        after in prop::option::of("[ab/-]{0,4}"),
        sizes in prop::collection::vec(1usize..6, 1..4),
        seeks: bool,
        rolls: bool,
        lavish: bool,
    ) {
        let objects = MemoryStore::new();
        for name in &names {
            objects.insert(name, "x");
        }
        let request = ListRequest { prefix, delimiter, start_after: after, token: None, max_keys: 1 };
        let expected = all(
            |r| objects.list(r).now_or_never().expect("nothing here waits"),
            request.clone(),
            &sizes,
        );
        let origin = Origin { objects: objects.clone(), seeks, rolls, lavish };
        let found = all(
            |r| page(&origin, r).now_or_never().expect("nothing here waits"),
            request,
            &sizes,
        );
        prop_assert_eq!(found, expected);
    }
}

struct Odd;

#[async_trait]
impl RawPages for Odd {
    async fn raw_page(&self, _: RawRequest<'_>) -> Result<RawPage> {
        let objects = MemoryStore::new();
        objects.insert("k", "x");
        let meta = objects.head(&ObjectKey::new("k").unwrap()).await?;
        let item = |name: String| RawItem { name, meta: Some(meta.clone()) };
        Ok(RawPage { items: vec![item("l".repeat(2000)), item("k".into())], next: None })
    }

    fn rolls_up(&self, _: &str) -> bool {
        true
    }
}

#[test]
fn names_that_are_no_keys_are_counted_and_left_out() {
    let page = page(&Odd, &ListRequest::default()).now_or_never().unwrap().unwrap();
    assert_eq!((page.entries.len(), page.skipped), (1, 1));
}

#[test]
fn foreign_tokens_are_refused() {
    for text in ["", "!!", "YWJj", "a b"] {
        assert_eq!(Token::decode(text).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let token = Token { marker: Some("m\u{1}".into()), ..Token::default() };
    assert_eq!(Token::decode(&token.encode()).unwrap(), token);
}
