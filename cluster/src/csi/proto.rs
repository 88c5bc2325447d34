//! Messages of CSI 1.x and of kubelet's plugin registration v1, as far as this driver speaks them.
//!
//! Invariant: field numbers are those of `csi.proto` and of `pluginregistration/v1/api.proto`, and a
//! field that is not named here is skipped, as protobuf asks. It decides nothing.

// The names are the protocols'.
#![allow(missing_docs, unreachable_pub)]

use std::collections::HashMap;

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, Message)]
pub struct PluginInfo {
    #[prost(string, tag = "1")]
    pub r#type: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub endpoint: String,
    #[prost(string, repeated, tag = "4")]
    pub supported_versions: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RegistrationStatus {
    #[prost(bool, tag = "1")]
    pub plugin_registered: bool,
    #[prost(string, tag = "2")]
    pub error: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct GetPluginInfoResponse {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub vendor_version: String,
}

/// `google.protobuf.BoolValue`.
#[derive(Clone, PartialEq, Message)]
pub struct BoolValue {
    #[prost(bool, tag = "1")]
    pub value: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct ProbeResponse {
    #[prost(message, optional, tag = "1")]
    pub ready: Option<BoolValue>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NodeGetInfoResponse {
    #[prost(string, tag = "1")]
    pub node_id: String,
    #[prost(int64, tag = "2")]
    pub max_volumes_per_node: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct MountVolume {
    #[prost(string, tag = "1")]
    pub fs_type: String,
    #[prost(string, repeated, tag = "2")]
    pub mount_flags: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct VolumeCapability {
    /// `block` and `mount` are one choice.
    #[prost(message, optional, tag = "1")]
    pub block: Option<Empty>,
    #[prost(message, optional, tag = "2")]
    pub mount: Option<MountVolume>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NodePublishVolumeRequest {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "4")]
    pub target_path: String,
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    #[prost(bool, tag = "6")]
    pub readonly: bool,
    #[prost(map = "string, string", tag = "8")]
    pub volume_context: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NodeUnpublishVolumeRequest {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "2")]
    pub target_path: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What kubelet sends, by hand: tag numbers are the protocol's, or nothing is understood.
    #[test]
    fn a_publish_request_is_read_from_its_bytes() {
        let mut wire = vec![0x0a, 2, b'v', b'1', 0x22, 2, b'/', b't'];
        // volume_capability { mount {} access_mode { mode: 1 } }
        wire.extend([0x2a, 6, 0x12, 0, 0x1a, 2, 0x08, 1]);
        // secrets are skipped
        wire.extend([0x3a, 6, 0x0a, 1, b's', 0x12, 1, b'x']);
        wire.extend([0x42, 6, 0x0a, 1, b'k', 0x12, 1, b'w']);
        let request = NodePublishVolumeRequest::decode(&*wire).unwrap();
        assert_eq!((&*request.volume_id, &*request.target_path), ("v1", "/t"));
        assert!(request.volume_capability.is_some_and(|capability| capability.mount.is_some()));
        assert_eq!(request.volume_context["k"], "w");
    }
}
