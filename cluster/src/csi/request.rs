//! What a publish or unpublish call asks for, once it is known to be one of ours.
//!
//! Invariant: a [`Target`] lies in the volumes of one pod below kubelet's directory, with no `..` and
//! no other shape; whoever has one may unmount and `rmdir` it. It refuses, with one sentence, every
//! attribute that it does not know. It looks at text only, never at a disk.

use std::path::{Path, PathBuf};

use tonic::Status;

use super::proto::NodePublishVolumeRequest;
use crate::names::{CSI_ROLE, CSI_ROLE_MOUNT, CSI_ROLE_SOCKET, CSI_WORKER_UID, WORKER_ID};

/// What kubelet adds to the attributes of a volume begins with this.
const KUBELET_PREFIX: &str = "csi.storage.k8s.io/";

/// The longest uid of a pod that is taken; kubelet's are 36 bytes, those of static pods 32.
const MAX_UID_BYTES: usize = 64;

/// What a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The mount.
    Mount {
        /// The user that may be its worker.
        worker: u32,
    },
    /// The folder with the socket of the pod's holder.
    Socket,
}

/// Where kubelet wants a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// `<kubelet>/pods/<uid>/volumes/kubernetes.io~csi/<volume>/mount`.
    pub(super) path: PathBuf,
    /// The pod's uid: letters, digits and `-`, so that it is a file name.
    pub(super) uid: String,
}

impl Target {
    /// Takes a target path apart. `kubelet_dir` is absolute.
    pub(super) fn parse(path: &str, kubelet_dir: &Path) -> Result<Self, Status> {
        let refused = || {
            Status::invalid_argument(format!(
                "target path `{path}` is not `{}/pods/UID/volumes/kubernetes.io~csi/NAME/mount`; \
                 start the node service with the --kubelet-dir of this node's kubelet",
                kubelet_dir.display()
            ))
        };
        let whole = Path::new(path);
        let rest = whole.strip_prefix(kubelet_dir).map_err(|_| refused())?;
        let rest = rest.to_str().ok_or_else(refused)?;
        let names: Vec<&str> = rest.split('/').collect();
        let ["pods", uid, "volumes", "kubernetes.io~csi", volume, "mount"] = names[..] else {
            return Err(refused());
        };
        let rebuilt = kubelet_dir.join(rest);
        let is_volume = !["", ".", ".."].contains(&volume);
        // Compared as text, since paths that compare equal may be written with `//` and `/./`.
        if rebuilt.as_os_str() != path || !is_uid(uid) || !is_volume || path.contains('\0') {
            return Err(refused());
        }
        Ok(Self { path: rebuilt, uid: uid.to_owned() })
    }
}

/// Whether text can be a pod's uid, and so a file name.
pub(super) fn is_uid(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=MAX_UID_BYTES).contains(&text.len()) && text.bytes().all(known)
}

/// A publish call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Publish {
    pub(super) target: Target,
    pub(super) role: Role,
    /// `namespace/name` of the pod, for people.
    pub(super) pod: String,
}

impl Publish {
    /// Reads a call. Errors are `INVALID_ARGUMENT` with one sentence, which kubelet shows as the
    /// pod's event.
    pub(super) fn parse(
        call: &NodePublishVolumeRequest,
        kubelet_dir: &Path,
        allow_root: bool,
    ) -> Result<Self, Status> {
        let refused = |what: String| Err(Status::invalid_argument(what));
        if call.volume_id.is_empty() {
            return refused("the call names no volume".to_owned());
        }
        let Some(capability) = &call.volume_capability else {
            return refused("the call names no volume capability".to_owned());
        };
        let Some(mount) = capability.mount.as_ref().filter(|_| capability.block.is_none()) else {
            return refused("this volume is a file system, not a block device".to_owned());
        };
        if !mount.mount_flags.is_empty() {
            return refused("this volume takes no mount options; leave them out".to_owned());
        }
        if !["", "ext4"].contains(&&*mount.fs_type) {
            return refused(format!("fsType `{}` means nothing here; leave it out", mount.fs_type));
        }
        let target = Target::parse(&call.target_path, kubelet_dir)?;
        let context = &call.volume_context;
        let of_kubelet =
            |name: &str| context.get(&format!("{KUBELET_PREFIX}{name}")).map_or("", String::as_str);
        if of_kubelet("ephemeral") != "true" {
            return refused(
                "only inline volumes (`csi:` in the pod itself) are served, no PersistentVolumes"
                    .to_owned(),
            );
        }
        if of_kubelet("pod.uid") != target.uid {
            return refused(format!(
                "the pod's uid `{}` is not that of the target path; \
                 the CSIDriver needs `podInfoOnMount: true`",
                of_kubelet("pod.uid")
            ));
        }
        let known = |name: &&String| {
            ![CSI_ROLE, CSI_WORKER_UID].contains(&name.as_str())
                && !name.starts_with(KUBELET_PREFIX)
        };
        if let Some(unknown) = context.keys().filter(known).min() {
            return refused(format!(
                "volume attribute `{unknown}` is not known; there are `{CSI_ROLE}` and `{CSI_WORKER_UID}`"
            ));
        }
        let uid = context.get(CSI_WORKER_UID);
        let role = match context.get(CSI_ROLE).map(String::as_str) {
            Some(CSI_ROLE_MOUNT) => Role::Mount { worker: worker(uid, allow_root)? },
            Some(CSI_ROLE_SOCKET) => {
                worker(uid, true)?;
                Role::Socket
            }
            Some(other) => {
                return refused(format!(
                    "volume attribute `{CSI_ROLE}` is `{other}`; \
                     write `{CSI_ROLE_MOUNT}` or `{CSI_ROLE_SOCKET}`"
                ));
            }
            None => {
                return refused(format!(
                    "volume attribute `{CSI_ROLE}` is missing; \
                     write `{CSI_ROLE_MOUNT}` or `{CSI_ROLE_SOCKET}`"
                ));
            }
        };
        let pod = format!("{}/{}", of_kubelet("pod.namespace"), of_kubelet("pod.name"));
        Ok(Self { target, role, pod })
    }
}

/// The user that may be the worker; the image's without a word.
fn worker(text: Option<&String>, allow_root: bool) -> Result<u32, Status> {
    let Some(text) = text else { return Ok(WORKER_ID) };
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // The last number means "nobody is meant" to the kernel.
    let uid = text.parse::<u32>().ok().filter(|uid| digits && *uid != u32::MAX);
    match uid {
        Some(0) if !allow_root => Err(Status::invalid_argument(format!(
            "volume attribute `{CSI_WORKER_UID}` is 0: a worker that is root is allowed by the node \
             service's --allow-root-worker only"
        ))),
        Some(uid) => Ok(uid),
        None => Err(Status::invalid_argument(format!(
            "volume attribute `{CSI_WORKER_UID}` is `{text}`; write the number of a user"
        ))),
    }
}

#[cfg(test)]
mod tests;
