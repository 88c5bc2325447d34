//! Every way in which a call is refused, and the ones that are not.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::proto::{Empty, MountVolume, VolumeCapability};
use super::*;

const DIR: &str = "/var/lib/kubelet";
const UID: &str = "0a1b2c3d-0000-4000-8000-0123456789ab";

fn target(volume: &str) -> String {
    format!("{DIR}/pods/{UID}/volumes/kubernetes.io~csi/{volume}/mount")
}

fn call(attributes: &[(&str, &str)]) -> NodePublishVolumeRequest {
    let mut context: HashMap<String, String> = [
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.uid", UID),
        ("csi.storage.k8s.io/pod.name", "trainer"),
        ("csi.storage.k8s.io/pod.namespace", "ml"),
        ("csi.storage.k8s.io/serviceAccount.name", "default"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    context
        .extend(attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    NodePublishVolumeRequest {
        volume_id: "csi-1".to_owned(),
        target_path: target("warpdrive-mount"),
        volume_capability: Some(VolumeCapability {
            block: None,
            mount: Some(MountVolume::default()),
        }),
        readonly: false,
        volume_context: context,
    }
}

fn parse(call: &NodePublishVolumeRequest) -> Result<Publish, String> {
    Publish::parse(call, Path::new(DIR), false).map_err(|status| {
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
        status.message().to_owned()
    })
}

#[test]
fn the_two_volumes_of_a_pod() {
    let mount = parse(&call(&[("role", "mount"), ("workerUid", "65534")])).unwrap();
    assert_eq!(mount.role, Role::Mount { worker: 65534 });
    assert_eq!((&*mount.pod, &*mount.target.uid), ("ml/trainer", UID));
    assert_eq!(mount.target.path, Path::new(&target("warpdrive-mount")));
    assert_eq!(parse(&call(&[("role", "mount")])).unwrap().role, Role::Mount { worker: WORKER_ID });
    assert_eq!(parse(&call(&[("role", "socket")])).unwrap().role, Role::Socket);
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let says = |attributes: &[(&str, &str)], words: &str| {
        let said = parse(&call(attributes)).unwrap_err();
        assert!(said.contains(words), "{attributes:?}: {said}");
    };
    says(&[], "`role` is missing");
    says(&[("role", "holder")], "`holder`");
    says(&[("role", "mount"), ("bucket", "b")], "`bucket` is not known");
    says(&[("role", "mount"), ("workerUid", "0")], "--allow-root-worker");
    for uid in ["", "-1", "+1", " 7", "nobody", "4294967295", "4294967296"] {
        says(&[("role", "mount"), ("workerUid", uid)], "the number of a user");
    }
    says(&[("role", "mount"), ("csi.storage.k8s.io/ephemeral", "false")], "inline volumes");
    says(&[("role", "mount"), ("csi.storage.k8s.io/pod.uid", "other")], "podInfoOnMount");
    let root = call(&[("role", "mount"), ("workerUid", "0")]);
    let allowed = Publish::parse(&root, Path::new(DIR), true).unwrap();
    assert_eq!(allowed.role, Role::Mount { worker: 0 });
}

#[test]
fn only_a_file_system_without_options() {
    let with = |capability: Option<VolumeCapability>| {
        parse(&NodePublishVolumeRequest {
            volume_capability: capability,
            ..call(&[("role", "mount")])
        })
    };
    assert!(with(None).is_err());
    assert!(with(Some(VolumeCapability { block: Some(Empty {}), mount: None })).is_err());
    let flags = MountVolume { mount_flags: vec!["rw".to_owned()], ..Default::default() };
    assert!(with(Some(VolumeCapability { block: None, mount: Some(flags) })).is_err());
    let xfs = MountVolume { fs_type: "xfs".to_owned(), ..Default::default() };
    assert!(with(Some(VolumeCapability { block: None, mount: Some(xfs) })).is_err());
}

#[test]
fn only_a_volume_of_a_pod_is_a_target() {
    let uid = UID;
    for bad in [
        "",
        "/",
        "/etc",
        DIR,
        &format!("{DIR}/pods/{uid}"),
        &format!("{DIR}/pods/{uid}/volumes/kubernetes.io~csi/v"),
        &format!("{DIR}/pods/{uid}/volumes/kubernetes.io~csi/v/mount/"),
        &format!("{DIR}/pods/{uid}/volumes/kubernetes.io~csi/v/mount/x"),
        &format!("{DIR}/pods/{uid}/volumes/kubernetes.io~csi/../mount"),
        &format!("{DIR}/pods/{uid}/volumes/kubernetes.io~csi/./mount"),
        &format!("{DIR}/pods/{uid}/volumes/kubernetes.io~csi//mount"),
        &format!("{DIR}/pods//{uid}/volumes/kubernetes.io~csi/v/mount"),
        &format!("{DIR}//pods/{uid}/volumes/kubernetes.io~csi/v/mount"),
        &format!("{DIR}/./pods/{uid}/volumes/kubernetes.io~csi/v/mount"),
        &format!("{DIR}/pods/../volumes/kubernetes.io~csi/v/mount"),
        &format!("{DIR}/pods/a_b/volumes/kubernetes.io~csi/v/mount"),
        &format!("{DIR}/pods/{uid}/volumes/kubernetes.io~empty-dir/v/mount"),
        &format!("{DIR}-other/pods/{uid}/volumes/kubernetes.io~csi/v/mount"),
        &format!("/var/lib/kubelet/../kubelet/pods/{uid}/volumes/kubernetes.io~csi/v/mount"),
        &format!("var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/v/mount"),
    ] {
        assert!(Target::parse(bad, Path::new(DIR)).is_err(), "{bad}");
    }
    assert!(Target::parse(&target("v"), Path::new(DIR)).is_ok());
}

proptest! {
    /// Nothing that a caller writes leads out of the volumes of one pod.
    #[test]
    fn a_target_stays_where_volumes_are(path in "(/var/lib/kubelet)?(/(pods|volumes|kubernetes\\.io~csi|mount|\\.\\.|\\.|[a-z0-9-]{0,3})){0,8}/?") {
        if let Ok(target) = Target::parse(&path, Path::new(DIR)) {
            prop_assert_eq!(target.path.to_str(), Some(&*path));
            prop_assert!(path.split('/').skip(1).all(|name| !["", ".", ".."].contains(&name)));
            let below = Path::new(DIR).join("pods").join(&target.uid).join("volumes/kubernetes.io~csi");
            prop_assert!(target.path.starts_with(below));
        }
    }

    #[test]
    fn no_call_panics(path in ".*", role in ".*", uid in ".*", name in ".*") {
        let mut call = call(&[("role", &role), ("workerUid", &uid), (&name, "x")]);
        call.target_path = path;
        let _ = Publish::parse(&call, Path::new(DIR), false);
    }
}
