//! What a warm job is to do, checked against what there is.
//!
//! Invariant: every bucket that a plan names exists, and its pattern compiles.

use std::collections::BTreeMap;
use std::sync::Arc;

use cache::CachedStore;
use globset::{GlobBuilder, GlobMatcher};
use store::ObjectKey;

use super::WarmRequest;
use super::pace::Pace;

/// Why a request makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadRequest(pub(crate) String);

/// A bucket that can be warmed, by the name that the user gave.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) name: Arc<str>,
    pub(crate) store: Arc<CachedStore>,
}

/// A request that makes sense.
pub(crate) struct Plan {
    pub(super) targets: Vec<Target>,
    pub(super) prefix: String,
    glob: Option<GlobMatcher>,
    pub(super) objects: Option<Vec<(usize, ObjectKey)>>,
    pub(super) max_size_bytes: u64,
    pub(super) parallel: usize,
    pub(super) pace: Pace,
}

impl Plan {
    /// Checks a request against what there is to warm: `find` knows buckets and backends by name,
    /// `all` are those of a request that names none.
    pub(crate) fn new(
        request: WarmRequest,
        all: &[String],
        find: impl Fn(&str) -> Option<Arc<CachedStore>>,
    ) -> Result<Self, BadRequest> {
        let mut targets = Vec::new();
        let mut positions: BTreeMap<String, usize> = BTreeMap::new();
        let mut add = |name: &str| -> Result<usize, BadRequest> {
            if let Some(position) = positions.get(name) {
                return Ok(*position);
            }
            let store = find(name).ok_or_else(|| {
                BadRequest(format!("no bucket `{name}`; there are: {}", all.join(", ")))
            })?;
            targets.push(Target { name: name.into(), store });
            positions.insert(name.to_owned(), targets.len() - 1);
            Ok(targets.len() - 1)
        };
        let objects = match request.objects {
            None => {
                let wanted = if request.buckets.is_empty() { all } else { &request.buckets };
                for name in wanted {
                    add(name)?;
                }
                None
            }
            Some(named) => {
                let mut objects = Vec::with_capacity(named.len());
                for (bucket, key) in named {
                    let key = ObjectKey::new(key).map_err(|e| BadRequest(e.to_string()))?;
                    objects.push((add(&bucket)?, key));
                }
                Some(objects)
            }
        };
        let glob = request.glob.as_deref().map(matcher).transpose()?;
        let literal = request.glob.as_deref().map(literal_prefix).unwrap_or_default();
        if request.rate_bytes_per_second == Some(0) {
            return Err(BadRequest("a rate of 0 would never end".to_owned()));
        }
        Ok(Self {
            targets,
            // A listing that begins where the pattern does skips the rest of the bucket.
            prefix: request.prefix.unwrap_or_else(|| literal.to_owned()),
            glob,
            objects,
            max_size_bytes: request.max_size_bytes.unwrap_or(u64::MAX),
            parallel: usize::from(request.parallel.unwrap_or(8).clamp(1, 256)),
            pace: Pace::new(request.rate_bytes_per_second),
        })
    }

    pub(super) fn wants(&self, key: &ObjectKey) -> bool {
        self.glob.as_ref().is_none_or(|glob| glob.is_match(key.as_str()))
    }
}

fn matcher(pattern: &str) -> Result<GlobMatcher, BadRequest> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    glob.map(|g| g.compile_matcher()).map_err(|e| BadRequest(format!("--glob: {e}")))
}

/// What every match of a pattern begins with.
fn literal_prefix(pattern: &str) -> &str {
    &pattern[..pattern.find(['*', '?', '[', '{', '\\']).unwrap_or(pattern.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_begin_with_what_they_say() {
        assert_eq!(literal_prefix("imagenet/**/*.tar"), "imagenet/");
        assert_eq!(literal_prefix("exact/key"), "exact/key");
        assert_eq!(literal_prefix("*.tar"), "");
        let glob = matcher("a/*.tar").unwrap();
        assert!(glob.is_match("a/x.tar") && !glob.is_match("a/b/x.tar"));
        let glob = matcher("**/*.{tar,idx}").unwrap();
        assert!(glob.is_match("a/b/x.idx") && glob.is_match("x.tar") && !glob.is_match("x.zip"));
        assert!(matcher("a[").is_err());
    }

    #[test]
    fn requests_that_make_no_sense_say_why() {
        let all = ["train".to_owned()];
        let none = |_: &str| None;
        let named = WarmRequest { buckets: vec!["tarin".to_owned()], ..WarmRequest::default() };
        let error = Plan::new(named, &all, none).err().unwrap();
        assert_eq!(error.to_string(), "no bucket `tarin`; there are: train");
        let nothing = WarmRequest {
            objects: Some(vec![]),
            rate_bytes_per_second: Some(0),
            ..WarmRequest::default()
        };
        assert!(Plan::new(nothing, &all, none).is_err());
    }
}
