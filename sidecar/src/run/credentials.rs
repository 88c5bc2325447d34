//! The keys of the S3 endpoint, and how clients are told them.
//!
//! Invariant: a generated key exists for one sidecar, over the crashes and upgrades of its process;
//! its file is readable by its owner only, and its secret is never printed. It refuses to replace or
//! remove a file that holds anything but a key of the endpoint.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use s3gw::{Access, AccessKey};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use super::state;
use crate::admin::Credentials;
use crate::announce;
use crate::cli::Stop;
use crate::config::{AccessSettings, AdminAddress, S3Settings};

/// Access as the gateway takes it, and as clients are told.
pub(super) struct Prepared {
    pub(super) access: Access,
    pub(super) announced: announce::Access,
    pub(super) credentials: Option<Credentials>,
    /// The file of a generated key.
    pub(super) written: Option<KeyFile>,
}

/// The file of a generated key, which goes away with this: a key that opens nothing any more is
/// only confusing. A file that somebody has put in its place stays.
pub(super) struct KeyFile {
    path: PathBuf,
    id: String,
}

impl KeyFile {
    /// Leaves the file to the process that goes on for this one.
    pub(super) fn keep(mut self) {
        self.path = PathBuf::new();
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        let own = |id: &str| id == self.id;
        if matches!(found_at(&self.path, own), Ok(Found::OurKey)) {
            // Somebody may have removed it since, which is what is wanted.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A file of one key has a tenth of this; a larger one is something else.
const MAX_KEY_FILE_BYTES: u64 = 4096;

/// What stands where a key is to be written.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    OurKey,
    SomethingElse,
}

/// Looks at a path. A key of ours is a file with one profile, one id that `ours` knows, one secret
/// and no word more, as this program writes it.
fn found_at(path: &Path, ours: impl Fn(&str) -> bool) -> std::io::Result<Found> {
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    // A pipe would block, and a link is somebody's arrangement.
    if !meta.is_file() || meta.len() > MAX_KEY_FILE_BYTES {
        return Ok(Found::SomethingElse);
    }
    let Ok(text) = String::from_utf8(std::fs::read(path)?) else { return Ok(Found::SomethingElse) };
    let (mut profiles, mut ids, mut secrets) = (0, 0, 0);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        match name.trim() {
            "aws_access_key_id" if ours(value.trim()) => ids += 1,
            "aws_secret_access_key" => secrets += 1,
            _ if line.starts_with('[') && line.ends_with(']') => profiles += 1,
            _ => return Ok(Found::SomethingElse),
        }
    }
    Ok(match (profiles, ids, secrets) {
        (0, 0, 0) => Found::Nothing,
        (1, 1, 1) => Found::OurKey,
        _ => Found::SomethingElse,
    })
}

/// The generated key of a predecessor that this process goes on for: clients have it already.
fn left_at(path: &Path) -> Option<AccessKey> {
    if !matches!(found_at(path, |id| id.starts_with(GENERATED)), Ok(Found::OurKey)) {
        return None;
    }
    let meta = std::fs::metadata(path).ok()?;
    // A key that somebody else wrote, or can read, is not one to be trusted.
    if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
        return None;
    }
    let text = std::fs::read_to_string(path).ok()?;
    let value = |wanted: &str| {
        let mut pairs = text.lines().filter_map(|line| line.split_once('='));
        pairs.find(|(name, _)| name.trim() == wanted).map(|(_, value)| value.trim().to_owned())
    };
    let secret = SecretString::from(value("aws_secret_access_key")?);
    Some(AccessKey { id: value("aws_access_key_id")?, secret })
}

/// How generated ids begin.
const GENERATED: &str = "WARP";

/// Makes the folder of the file where only that is missing: in a pod without a mount nobody else has
/// made `state_dir`.
fn folder(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
        return Ok(());
    };
    match std::fs::DirBuilder::new().mode(0o700).create(parent) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Writes the file, unless that would destroy something.
fn write(key: &AccessKey, keys: &[AccessKey], path: &Path, profile: &str) -> Result<(), Stop> {
    // Ids that begin so are generated ones: an earlier sidecar did not come to remove its file.
    let ours = |id: &str| id.starts_with(GENERATED) || keys.iter().any(|known| known.id == id);
    let written = match found_at(path, ours) {
        Ok(Found::Nothing | Found::OurKey) => {
            folder(path).and_then(|()| key.write_shared_credentials_file(path, profile))
        }
        Ok(Found::SomethingElse) => Err(std::io::Error::new(
            std::io::ErrorKind::AlreadyExists,
            "holds something other than a key of this endpoint, and is left as it is; name a file \
             that is only for this, or remove it",
        )),
        Err(error) => Err(error),
    };
    written.map_err(|e| Stop::Failed(format!("s3.credentials_file {}: {e}", path.display())))
}

/// Where keys are written that the file names no place for, and whether they are taken from there.
pub(super) struct Keeping {
    /// The file of a generated key.
    pub(super) file: Place,
    /// True where this process goes on for another: after its crash, or taking over.
    pub(super) goes_on: bool,
}

/// Where a generated key is written.
pub(super) enum Place {
    /// In a directory of this sidecar's own.
    In(PathBuf),
    /// In the directory of this user's run-time files, named by a process.
    OfProcess(u32),
}

/// Makes or takes the keys, and writes the file for clients.
pub(super) fn prepare(
    s3: &S3Settings,
    admin: Option<&AdminAddress>,
    keeping: &Keeping,
) -> Result<Prepared, Stop> {
    let generated = matches!(s3.access, AccessSettings::Generated);
    // A static key is known to its users; a file is written only where they ask for one.
    let path = match (&s3.credentials_file, generated, &keeping.file) {
        (Some(path), ..) => Some(path.clone()),
        (None, false, _) => None,
        (None, true, Place::In(dir)) => Some(dir.join("credentials")),
        (None, true, Place::OfProcess(pid)) => Some(default_file(*pid)?),
    };
    let keys = match &s3.access {
        AccessSettings::Anonymous => {
            return Ok(Prepared {
                access: Access::Anonymous,
                announced: announce::Access::Anonymous,
                credentials: None,
                written: None,
            });
        }
        AccessSettings::Static(pairs) => {
            let key = |p: &crate::config::KeyPair| AccessKey {
                id: p.id.clone(),
                secret: p.secret.clone(),
            };
            pairs.iter().map(key).collect::<Vec<_>>()
        }
        AccessSettings::Generated => {
            let left = path.as_deref().filter(|_| keeping.goes_on).and_then(left_at);
            vec![left.unwrap_or_else(AccessKey::generate)]
        }
    };
    let Some(first) = keys.first().cloned() else {
        return Err(Stop::Unusable("s3.keys: names no key".to_owned()));
    };
    if let Some(path) = &path {
        write(&first, &keys, path, &s3.profile)?;
    }
    // Clients take this address only over plain HTTP on loopback.
    let over_tcp = match admin {
        Some(AdminAddress::Tcp(address)) if generated => Some(address),
        _ => None,
    };
    let token = s3.credentials_token.then(|| token(&first));
    let uri = over_tcp.map(|address| format!("http://{address}/credentials"));
    let announced = announce::Access::Signed {
        file: path.clone(),
        profile: s3.profile.clone(),
        uri: uri.clone().map(|uri| (uri, token.clone())),
    };
    let written = path.filter(|_| generated).map(|path| KeyFile { path, id: first.id.clone() });
    let credentials = uri.map(|_| Credentials { key: first, token: token.map(SecretString::from) });
    Ok(Prepared { access: Access::Signed(keys), announced, credentials, written })
}

/// A file in a directory of this user's; named by process, so that two sidecars keep apart.
fn default_file(pid: u32) -> Result<PathBuf, Stop> {
    let refused = |e| Stop::Failed(format!("credentials folder {e}; set s3.credentials_file"));
    Ok(state::user_folder().map_err(refused)?.join(format!("credentials-{pid}")))
}

/// What clients must send to be told a key: 256 bits in hex, the same for as long as the key is, and
/// nothing that leads back to it.
fn token(key: &AccessKey) -> String {
    use std::fmt::Write;
    let mut hash = Sha256::new();
    hash.update(b"warpdrive: token for the credentials of ");
    hash.update(key.id.as_bytes());
    hash.update([0]);
    hash.update(key.secret.expose_secret().as_bytes());
    hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_file(path: &Path) -> (AccessKey, KeyFile) {
        let key = AccessKey::generate();
        assert!(write(&key, std::slice::from_ref(&key), path, "default").is_ok());
        let file = KeyFile { path: path.to_owned(), id: key.id.clone() };
        (key, file)
    }

    #[test]
    fn a_key_goes_away_with_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let (_, file) = key_file(&path);
        assert!(path.exists());
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn who_goes_on_for_another_has_its_key() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        assert!(left_at(&path).is_none());
        let (first, _file) = key_file(&path);
        let left = left_at(&path).unwrap();
        assert_eq!(left.id, first.id);
        assert_eq!(left.secret.expose_secret(), first.secret.expose_secret());
        assert_eq!(token(&left), token(&first));
        assert_ne!(token(&AccessKey::generate()), token(&first));
        // One that others could have read is not used again.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(left_at(&path).is_none());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "[default]\naws_access_key_id = AKIA\naws_secret_access_key = x\n")
            .unwrap();
        assert!(left_at(&path).is_none());
    }

    #[test]
    fn what_took_its_place_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        // Another sidecar's key.
        let (_, first) = key_file(&path);
        let (second, _kept) = key_file(&path);
        drop(first);
        assert!(std::fs::read_to_string(&path).unwrap().contains(&second.id));
        // A profile that somebody added.
        let (_, file) = key_file(&path);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}\n[work]\naws_access_key_id = AKIA\n")).unwrap();
        drop(file);
        assert!(std::fs::read_to_string(&path).unwrap().contains("[work]"));
    }

    #[test]
    fn a_folder_that_is_not_there_is_made_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker/credentials");
        let key = AccessKey::generate();
        write(&key, std::slice::from_ref(&key), &path, "default")
            .unwrap_or_else(|_| panic!("not written"));
        let mode = path.parent().unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        // A path that was mistyped further up is none to be made.
        let far = folder.path().join("no/such/credentials");
        assert!(write(&key, std::slice::from_ref(&key), &far, "default").is_err());
    }

    #[test]
    fn somebodys_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials");
        let key = AccessKey::generate();
        for theirs in [
            "[default]\naws_access_key_id = AKIAMINE\naws_secret_access_key = mine\n",
            "[default]\naws_access_key_id = WARPX\naws_secret_access_key = x\nregion = eu\n",
            "# notes\n",
            "\u{fffd}",
        ] {
            std::fs::write(&path, theirs).unwrap();
            let refused = write(&key, std::slice::from_ref(&key), &path, "default");
            let Err(Stop::Failed(why)) = refused else { panic!("replaced {theirs}") };
            assert!(why.contains("s3.credentials_file") && why.contains("name a file"), "{why}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), theirs);
        }
        // What a killed sidecar left, and an empty file that `mktemp` made.
        for left in ["[default]\naws_access_key_id = WARPX\naws_secret_access_key = x\n", ""] {
            std::fs::write(&path, left).unwrap();
            assert!(write(&key, std::slice::from_ref(&key), &path, "default").is_ok(), "{left}");
        }
    }
}
