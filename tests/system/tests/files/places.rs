//! Where the cache lies and who runs the worker: file systems of other kinds, a user without
//! privileges.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::json;
use system_tests::{DataSet, no_mount, program};
use testkit::{Process, Skipped};

use crate::{KIB, MIB, home_over, need_passthrough, opens, passthroughs, read_all, wait_published};

/// A user who may do nothing special, on every system.
const NOBODY: u32 = 65534;

/// A file system that is unmounted when it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(kind: &str, at: &Path, options: &str) -> Result<Mounted, String> {
        std::fs::create_dir_all(at).unwrap();
        let data = std::ffi::CString::new(options).unwrap();
        mount(kind, at, kind, MountFlags::empty(), &*data)
            .map(|()| Mounted(at.to_owned()))
            .map_err(|error| format!("{kind} cannot be mounted: {error}"))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn set() -> DataSet {
    DataSet::new("set", 6, &[100 * KIB, 3 * MIB], 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_on_tmpfs_is_read_by_the_kernel() {
    need_passthrough!();
    let (folder, set) = (tempfile::tempdir().unwrap(), set());
    let home =
        home_over(&set, folder.path(), |config| config["cache"]["max_size"] = json!("64MiB"));
    let _cache = match Mounted::new("tmpfs", &home.path().join("cache"), "size=256m") {
        Ok(mounted) => mounted,
        Err(why) => return Skipped::new("tmpfs", why).say(),
    };
    let sidecar = home.start().await;
    read_all(&set, &home);
    wait_published(&set, &home, &sidecar).await;
    read_all(&set, &home);
    assert_eq!(sidecar.stop(), Some(0), "{}", home.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_on_an_overlay_works_and_says_how() {
    need_passthrough!();
    let (folder, set) = (tempfile::tempdir().unwrap(), set());
    let home = home_over(&set, folder.path(), |_| {});
    let layers = tempfile::tempdir().unwrap();
    for layer in ["lower", "upper", "work"] {
        std::fs::create_dir(layers.path().join(layer)).unwrap();
    }
    let at = layers.path().display();
    let options = format!("lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work");
    let _cache = match Mounted::new("overlay", &home.path().join("cache"), &options) {
        Ok(mounted) => mounted,
        Err(why) => return Skipped::new("overlay", why).say(),
    };
    let sidecar = home.start().await;
    let begun = Instant::now();
    loop {
        read_all(&set, &home);
        let stacked = sidecar.series("warpdrive_fuse_opens_total", "stacked_file_system").await;
        if stacked > 0.0 {
            assert!(home.log().contains("stacked_file_system"), "said once\n{}", home.log());
            break;
        }
        // A kernel may allow one file system on another; then all of it must work.
        if passthroughs(&sidecar).await > 0.0 {
            wait_published(&set, &home, &sidecar).await;
            break;
        }
        let opens = opens(&sidecar).await;
        assert!(
            begun.elapsed() < crate::PUBLISHED_WITHIN,
            "no reason is told\n{opens}\n{}",
            home.log()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    read_all(&set, &home);
    println!("{}", opens(&sidecar).await);
    assert_eq!(sidecar.stop(), Some(0), "{}", home.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_privileges_has_passthrough_from_a_given_holder() {
    need_passthrough!();
    if no_mount().is_some() {
        return;
    }
    let (folder, set) = (tempfile::tempdir().unwrap(), set());
    let home = home_over(&set, folder.path(), |config| {
        let state = config["state_dir"].as_str().unwrap().to_owned();
        config["fuse"]["holder"] = json!(format!("{state}/given"));
        config["allow_other"] = json!(true);
    });
    let state = home.path().join("state");
    for folder in [home.path().to_owned(), state.clone(), home.path().join("cache")] {
        std::fs::create_dir_all(&folder).unwrap();
        chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    // The origin and the program have to be reached, too.
    open_for_all(folder.path());
    let mut command = Command::new(program());
    command.arg("mountd").arg("--socket").arg(state.join("given"));
    command.arg("--mount-point").arg(home.mount_point());
    command.args(["--allow-uid", &NOBODY.to_string(), "--allow-other"]);
    let log = home.path().join("holder.log");
    let holder = Process::spawn("mountd", command, &log).unwrap();
    let begun = Instant::now();
    while !state.join("given").exists() {
        assert!(
            holder.is_running() && begun.elapsed() < Duration::from_secs(10),
            "{}",
            holder.log_tail()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut command = home.command("run");
    command.uid(NOBODY).gid(NOBODY);
    let sidecar = home.start_command(command);
    sidecar.ready().await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", sidecar.process().pid()));
    let status = status.unwrap();
    let powers = status.lines().find(|line| line.starts_with("CapEff:")).unwrap();
    assert_eq!(powers.split_whitespace().nth(1), Some("0000000000000000"), "has privileges");
    read_all(&set, &home);
    wait_published(&set, &home, &sidecar).await;
    read_all(&set, &home);
    println!("{}", opens(&sidecar).await);
    assert_eq!(sidecar.stop(), Some(0), "{}\n{}", home.log(), holder.log_tail());
    holder.stop();
}

/// Lets everybody read what lies below a folder.
fn open_for_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set(folder, 0o755);
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_dir() {
            open_for_all(&entry.path());
        } else {
            set(&entry.path(), 0o644);
        }
    }
}
