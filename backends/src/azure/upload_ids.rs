//! Names of uploads, and what this process remembers of them.
//!
//! Invariant: an id holds all that completing the upload needs besides its blocks, so it is good in
//! every process; what is remembered is bounded and only answers sooner.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use store::{Attributes, ObjectKey, UploadEntry, UploadId};

use super::blocks::BlockName;

/// Uploads that are remembered at most, and ends of uploads as many; the oldest are forgotten.
const REMEMBERED: usize = 10_000;

/// What an upload's id holds.
#[derive(Debug, Serialize, Deserialize)]
struct Carried {
    /// Which upload.
    #[serde(rename = "u")]
    upload: String,
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    cache_control: Option<String>,
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    content_disposition: Option<String>,
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    content_encoding: Option<String>,
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    content_language: Option<String>,
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    #[serde(rename = "m", default, skip_serializing_if = "BTreeMap::is_empty")]
    user: BTreeMap<String, String>,
    /// Set in ids that were found at the origin, which does not know the attributes.
    #[serde(rename = "o", default, skip_serializing_if = "std::ops::Not::not")]
    origin_only: bool,
}

pub(super) fn encode_id(upload: u64, attributes: Option<&Attributes>) -> UploadId {
    let origin_only = attributes.is_none();
    let a = attributes.cloned().unwrap_or_default();
    let carried = Carried {
        upload: format!("{upload:016x}"),
        content_type: a.content_type,
        cache_control: a.cache_control,
        content_disposition: a.content_disposition,
        content_encoding: a.content_encoding,
        content_language: a.content_language,
        expires: a.expires,
        user: a.user,
        origin_only,
    };
    let text = serde_json::to_string(&carried).expect("strings are JSON");
    UploadId(URL_SAFE_NO_PAD.encode(text).into())
}

/// The upload's number and the attributes that it was begun with; no attributes for an id that
/// was found at the origin.
pub(super) fn decode_id(id: &UploadId) -> Option<(u64, Option<Attributes>)> {
    let bytes = URL_SAFE_NO_PAD.decode(&*id.0).ok()?;
    let c: Carried = serde_json::from_slice(&bytes).ok()?;
    let upload = u64::from_str_radix(&c.upload, 16).ok()?;
    let attributes = Attributes {
        content_type: c.content_type,
        cache_control: c.cache_control,
        content_disposition: c.content_disposition,
        content_encoding: c.content_encoding,
        content_language: c.content_language,
        expires: c.expires,
        user: c.user,
    };
    Some((upload, (!c.origin_only).then_some(attributes)))
}

/// What this process knows of uploads.
#[derive(Default)]
pub(super) struct Known(Mutex<Memory>);

#[derive(Default)]
struct Memory {
    begun: HashMap<u64, (ObjectKey, UploadId, BlockName)>,
    ended: HashSet<u64>,
    /// The order of both, for forgetting.
    order: VecDeque<(u64, bool)>,
}

impl Known {
    pub(super) fn begin(&self, upload: u64, key: ObjectKey, id: UploadId, start: BlockName) {
        let mut memory = self.0.lock();
        memory.begun.insert(upload, (key, id, start));
        memory.remember(upload, false);
    }

    pub(super) fn end(&self, upload: u64) {
        let mut memory = self.0.lock();
        memory.begun.remove(&upload);
        memory.ended.insert(upload);
        memory.remember(upload, true);
    }

    pub(super) fn has_ended(&self, upload: u64) -> bool {
        self.0.lock().ended.contains(&upload)
    }

    pub(super) fn id_of(&self, upload: u64) -> Option<UploadId> {
        self.0.lock().begun.get(&upload).map(|(_, id, _)| id.clone())
    }

    /// Uploads of this process below a prefix.
    pub(super) fn below(&self, prefix: &str) -> Vec<UploadEntry> {
        let memory = self.0.lock();
        let begun = memory.begun.values().filter(|(key, ..)| key.as_str().starts_with(prefix));
        begun
            .map(|(key, id, start)| UploadEntry {
                key: key.clone(),
                upload: id.clone(),
                initiated: Some(start.time()),
            })
            .collect()
    }
}

impl Memory {
    fn remember(&mut self, upload: u64, ended: bool) {
        self.order.push_back((upload, ended));
        while self.order.len() > 2 * REMEMBERED {
            match self.order.pop_front() {
                Some((oldest, true)) => _ = self.ended.remove(&oldest),
                Some((oldest, false)) => _ = self.begun.remove(&oldest),
                None => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocks::Role;
    use super::*;

    #[test]
    fn ids_carry_attributes_over_a_restart() {
        let mut given = Attributes {
            content_type: Some("image/png".into()),
            expires: Some("never".into()),
            ..Attributes::default()
        };
        given.user.insert("owner".into(), "t\u{e9}am".into());
        let id = encode_id(7, Some(&given));
        assert_eq!(decode_id(&id), Some((7, Some(given))));
        assert_eq!(decode_id(&encode_id(7, None)), Some((7, None)));
        for foreign in ["", "x", "upload-1", "e30"] {
            assert_eq!(decode_id(&UploadId(foreign.into())), None, "{foreign}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let known = Known::default();
        let key = ObjectKey::new("k").unwrap();
        for upload in 0..3 * REMEMBERED as u64 {
            let id = UploadId(format!("{upload}").into());
            known.begin(upload, key.clone(), id, BlockName::new(upload, Role::Start, 0));
            if upload % 2 == 0 {
                known.end(upload);
            }
        }
        let memory = known.0.lock();
        assert!(memory.order.len() <= 2 * REMEMBERED);
        assert!(memory.begun.len() + memory.ended.len() <= 2 * REMEMBERED);
    }
}
