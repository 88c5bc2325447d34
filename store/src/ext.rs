//! Conveniences over [`Store`], written once for every implementation.
//!
//! Invariant: nothing here can do what the trait cannot. What collects says its bound.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};

use crate::contract::exactly;
use crate::{
    Body, ByteRange, ByteStream, Error, ErrorKind, GetOptions, ListEntry, ListRequest, ObjectKey,
    PutOptions, Result, Store, Written,
};

impl Body {
    /// The same body, failing with [`ErrorKind::IncompleteBody`] unless it yields exactly `size`
    /// bytes. Stores that an origin would not protect from a short body wrap what they are given.
    #[must_use]
    pub fn checked(self) -> Self {
        Self { size: self.size, stream: exactly(self.size, self.stream, "body") }
    }

    /// All bytes in memory; for bodies that the caller knows to be small. A body of more than
    /// `limit` bytes is [`ErrorKind::TooLarge`].
    pub async fn collect(self, limit: u64) -> Result<Bytes> {
        if self.size > limit {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("body has {} bytes, at most {limit} fit here", self.size),
            ));
        }
        collect(self.size, self.checked().stream).await
    }
}

/// Joins the pieces of a stream of about `size` bytes, without a copy where there is one piece.
pub(crate) async fn collect(size: u64, mut stream: ByteStream) -> Result<Bytes> {
    let Some(first) = stream.try_next().await? else { return Ok(Bytes::new()) };
    let Some(second) = stream.try_next().await? else { return Ok(first) };
    let mut all = BytesMut::with_capacity(size as usize);
    all.extend_from_slice(&first);
    all.extend_from_slice(&second);
    while let Some(piece) = stream.try_next().await? {
        all.extend_from_slice(&piece);
    }
    Ok(all.freeze())
}

/// Conveniences for callers of a store.
#[async_trait]
pub trait StoreExt: Store {
    /// The bytes of a range in memory.
    async fn get_bytes(&self, key: &ObjectKey, range: ByteRange) -> Result<Bytes> {
        let got = self.get(key, GetOptions { range, ..GetOptions::default() }).await?;
        collect(got.range.end - got.range.start, got.body).await
    }

    /// Writes bytes without attributes or condition.
    async fn put_bytes(&self, key: &ObjectKey, bytes: impl Into<Bytes> + Send) -> Result<Written> {
        self.put(key, Body::from(bytes.into()), PutOptions::default()).await
    }

    /// Every object below a prefix, in byte order, page by page. A bucket of any size can be
    /// walked; only one page is held.
    fn walk<'a>(&'a self, prefix: &str) -> futures::stream::BoxStream<'a, Result<ListEntry>> {
        let first = ListRequest { prefix: prefix.to_owned(), ..ListRequest::default() };
        futures::stream::try_unfold(Some(first), move |request| async move {
            let Some(request) = request else { return Ok::<_, Error>(None) };
            let page = self.list(&request).await?;
            let next = page.next.map(|token| ListRequest { token: Some(token), ..request });
            Ok(Some((futures::stream::iter(page.entries.into_iter().map(Ok)), next)))
        })
        .try_flatten()
        .boxed()
    }
}

impl<S: Store + ?Sized> StoreExt for S {}
