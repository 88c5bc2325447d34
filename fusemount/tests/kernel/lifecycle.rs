//! Mounting and unmounting, by root and by others, after crashes and under use.

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fusemount::{Metrics, Mount, MountConfig, MountError, MountPointState, check_mount_point};
use store::Namespace;
use store::testing::{FaultyStore, MemoryStore};

use crate::child::{Part, allow_other};
use crate::harness::{Detached, Mounted, can_mount, pattern, runtime};

fn open(path: &Path, force: bool, runtime: &tokio::runtime::Runtime) -> Result<Mount, MountError> {
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let mut config = MountConfig::new(path);
    config.force = force;
    Mount::open(Arc::new(Namespace::default()), config, metrics, runtime.handle().clone())
}

fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

#[test]
fn a_mount_left_by_a_crash_is_told_and_cleaned_by_force() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let _detached = Detached(dir.path());
    let mut part = Part::start("child::mounts", dir.path());
    assert_eq!(part.wait_for("content: "), "from a child");
    assert!(matches!(check_mount_point(dir.path()), MountPointState::Busy(_)));
    part.kill();
    assert_eq!(check_mount_point(dir.path()), MountPointState::Stale);

    let runtime = runtime();
    let refused = open(dir.path(), false, &runtime).unwrap_err().to_string();
    assert!(refused.contains("--force"), "{refused}");
    let mount = open(dir.path(), true, &runtime).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    runtime.block_on(mount.unmount(Duration::from_secs(1))).unwrap();
    assert!(!is_mounted(dir.path()));
    assert_eq!(check_mount_point(dir.path()), MountPointState::Free);
}

#[test]
fn a_live_mount_is_never_mounted_over() {
    let Some(m) = Mounted::new(|_| {}) else { return };
    let runtime = runtime();
    for force in [false, true] {
        let refused = open(&m.root, force, &runtime).unwrap_err().to_string();
        assert!(refused.contains("warpdrive"), "{refused}");
    }
    assert_eq!(std::fs::read_dir(&m.root).unwrap().count(), 1);
}

#[test]
fn mount_points_that_cannot_be_are_told_with_what_to_do() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let dir = tempfile::tempdir().unwrap();
    let missing = open(&dir.path().join("no"), false, &runtime).unwrap_err().to_string();
    assert!(missing.contains("mkdir -p"), "{missing}");
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let wrong = open(&file, false, &runtime).unwrap_err().to_string();
    assert!(wrong.contains("not a directory"), "{wrong}");
    let full = open(dir.path(), false, &runtime).unwrap();
    assert!(full.notes().iter().any(|note| note.contains("not empty")), "{:?}", full.notes());
}

#[test]
fn readahead_is_raised() {
    let Some(m) = Mounted::new(|_| {}) else { return };
    let mount = m.mount.as_ref().unwrap();
    if mount.notes().iter().any(|note| note.contains("read-ahead")) {
        return eprintln!("skipped: {:?}", mount.notes());
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|l| l.split(' ').nth(4) == m.root.to_str()).unwrap();
    assert!(line.contains(" fuse.warpdrive warpdrive "), "{line}");
    let device = line.split(' ').nth(2).unwrap();
    let kib = std::fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb")).unwrap();
    assert_eq!(kib.trim(), "1024");
}

#[test]
fn unmounting_waits_for_readers_and_then_detaches() {
    let Some(mut m) = Mounted::new(|store| _ = store.insert("file", pattern(4 << 20, 1))) else {
        return;
    };
    let mount = m.mount.take().unwrap();
    let file = File::open(m.path("file")).unwrap();
    let began = Instant::now();
    m.runtime.block_on(mount.unmount(Duration::from_millis(300))).unwrap();
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(5), "{took:?}");
    assert!(!is_mounted(&m.root));
    let mut buffer = [0; 512];
    let error = file.read_at(&mut buffer, 3 << 20).unwrap_err().raw_os_error();
    assert!(matches!(error, Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EIO)), "{error:?}");
}

#[test]
fn unmounting_succeeds_within_its_deadline_once_readers_leave() {
    let Some(mut m) = Mounted::new(|store| _ = store.insert("file", "x")) else { return };
    let mount = m.mount.take().unwrap();
    let file = File::open(m.path("file")).unwrap();
    let leaves = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(400));
        drop(file);
    });
    let began = Instant::now();
    m.runtime.block_on(mount.unmount(Duration::from_secs(20))).unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    leaves.join().unwrap();
}

#[test]
fn dropping_a_mount_and_unmounting_it_from_outside_both_end_it() {
    let Some(mut m) = Mounted::new(|_| {}) else { return };
    drop(m.mount.take());
    assert!(!is_mounted(&m.root));

    let runtime = runtime();
    let mount = open(&m.root, false, &runtime).unwrap();
    assert!(Command::new("umount").arg(&m.root).status().unwrap().success());
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(5), mount.ended()).await.unwrap();
    });
    // What lies there by now is not ours.
    let other = open(&m.root, false, &runtime).unwrap();
    runtime.block_on(mount.unmount(Duration::from_secs(1))).unwrap();
    assert!(is_mounted(&m.root));
    drop(other);
}

/// Runs this binary as nobody, in a mount namespace where everybody may open `/dev/fuse`, as is
/// usual, and where `/etc/fuse.conf` says what is given.
fn as_nobody(dir: &Path, conf: &str) -> Option<Command> {
    if !can_mount() {
        return None;
    }
    let exe = dir.join("test-binary");
    std::fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    std::fs::write(dir.join("fuse.conf"), conf).unwrap();
    std::fs::create_dir(dir.join("dev")).unwrap();
    let point = dir.join("mnt");
    std::fs::create_dir(&point).unwrap();
    std::os::unix::fs::chown(&point, Some(65534), Some(65534)).unwrap();
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&exe, std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = "set -e; cd \"$1\"; shift; \
        mount -t tmpfs none dev; mknod -m 666 dev/fuse c 10 229; \
        mount --bind dev/fuse /dev/fuse; mount --bind fuse.conf /etc/fuse.conf; \
        fusermount3 --version >/dev/null; \
        exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all -- \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(dir);
    let possible = {
        let mut probe = Command::new("unshare");
        probe.args(["--mount", "sh", "-c", script, "sh"]).arg(dir).arg("true").output()
    };
    match possible {
        Ok(output) if output.status.success() => {
            command.arg(exe);
            Some(command)
        }
        failed => {
            eprintln!("skipped: cannot run as nobody with fusermount3: {failed:?}");
            None
        }
    }
}

#[test]
fn a_user_mounts_through_fusermount3() {
    let dir = tempfile::tempdir().unwrap();
    let Some(command) = as_nobody(dir.path(), "") else { return };
    let mut part = Part::start_as(command, "child::mounts", &dir.path().join("mnt"));
    let notes = part.wait_for("mounted: ");
    assert!(notes.contains("fusermount3"), "{notes}");
    assert!(notes.contains("read-ahead"), "{notes}");
    assert_eq!(part.wait_for("content: "), "from a child");
    part.say("stop");
    part.wait_for("unmounted");
    part.finish();
}

#[test]
fn allow_other_as_a_user_needs_a_line_in_fuse_conf() {
    for (conf, allowed) in [("", false), ("user_allow_other\n", true)] {
        let dir = tempfile::tempdir().unwrap();
        let Some(mut command) = as_nobody(dir.path(), conf) else { return };
        allow_other(&mut command);
        let mut part = Part::start_as(command, "child::mounts", &dir.path().join("mnt"));
        if allowed {
            assert_eq!(part.wait_for("content: "), "from a child");
            part.say("stop");
        } else {
            let refused = part.wait_for("refused: ");
            assert!(refused.contains("user_allow_other"), "{refused}");
        }
        part.finish();
    }
}

#[test]
fn root_of_a_container_without_privilege_is_told_what_it_lacks() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let _detached = Detached(dir.path());
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-sys_admin", "--inh-caps=-all", "--"]);
    if !command.arg("true").status().is_ok_and(|status| status.success()) {
        return eprintln!("skipped: setpriv cannot drop a capability");
    }
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-sys_admin", "--inh-caps=-all", "--"]);
    command.arg(std::env::current_exe().unwrap());
    let mut part = Part::start_as(command, "child::mounts", dir.path());
    let why = part.wait_for("no fuse: ");
    assert!(why.contains("SYS_ADMIN") || why.contains("fuse3"), "{why}");
    part.finish();
}

#[test]
fn allow_other_lets_others_in() {
    let Some(m) =
        Mounted::with(|store| _ = store.insert("file", "x"), |config| config.allow_other = true)
    else {
        return;
    };
    std::fs::set_permissions(m.root.parent().unwrap(), std::fs::Permissions::from_mode(0o755))
        .unwrap();
    let read = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "cat"])
        .arg(m.path("file"))
        .output();
    match read {
        Ok(output) => assert_eq!(output.stdout, b"x", "{output:?}"),
        Err(error) => eprintln!("skipped: setpriv: {error}"),
    }
}

#[test]
fn many_mounts_of_one_process_do_not_disturb_each_other() {
    let some: Vec<_> = (0..4u8)
        .map_while(|n| {
            let store = MemoryStore::new();
            store.insert("file", vec![n; 1000]);
            let faulty = FaultyStore::new(Arc::new(store.clone()));
            let name = store::BucketName::new("main").unwrap();
            let namespace = Namespace::builder()
                .bucket(crate::harness::bucket("main", Arc::new(faulty.clone())))
                .unwrap()
                .mount("/data", &name, "")
                .unwrap()
                .build();
            Mounted::of(store, faulty, namespace, |_| {})
        })
        .collect();
    for (n, m) in some.iter().enumerate() {
        assert_eq!(m.read("file"), vec![n as u8; 1000]);
    }
}
