//! The keys of the S3 endpoint, and how clients are told them.
//!
//! Invariant: a generated key exists for one process; its file is readable by its owner only, and
//! its secret is never printed.

use std::path::PathBuf;

use rand::RngExt;
use s3gw::{Access, AccessKey};
use secrecy::SecretString;

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

/// A file that goes away with this: a key that opens nothing any more is only confusing.
pub(super) struct KeyFile(PathBuf);

impl Drop for KeyFile {
    fn drop(&mut self) {
        // Somebody may have removed it, which is what is wanted.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Makes or takes the keys, and writes the file for clients.
pub(super) fn prepare(s3: &S3Settings, admin: Option<&AdminAddress>) -> Result<Prepared, Stop> {
    let (keys, generated) = match &s3.access {
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
            (pairs.iter().map(key).collect::<Vec<_>>(), false)
        }
        AccessSettings::Generated => (vec![AccessKey::generate()], true),
    };
    let Some(first) = keys.first().cloned() else {
        return Err(Stop::Unusable("s3.keys: names no key".to_owned()));
    };
    // A static key is known to its users; a file is written only where they ask for one.
    let path = match (&s3.credentials_file, generated) {
        (Some(path), _) => Some(path.clone()),
        (None, true) => Some(default_file()?),
        (None, false) => None,
    };
    if let Some(path) = &path {
        first
            .write_shared_credentials_file(path, &s3.profile)
            .map_err(|e| Stop::Failed(format!("s3.credentials_file {}: {e}", path.display())))?;
    }
    // Clients take this address only over plain HTTP on loopback.
    let over_tcp = match admin {
        Some(AdminAddress::Tcp(address)) if generated => Some(address),
        _ => None,
    };
    let token = random_token();
    let uri = over_tcp.map(|address| format!("http://{address}/credentials"));
    let announced = announce::Access::Signed {
        file: path.clone(),
        profile: s3.profile.clone(),
        uri: uri.clone().map(|uri| (uri, token.clone())),
    };
    let credentials = uri.map(|_| Credentials { key: first, token: SecretString::from(token) });
    Ok(Prepared {
        access: Access::Signed(keys),
        announced,
        credentials,
        written: path.filter(|_| generated).map(KeyFile),
    })
}

/// A file in the directory that the system keeps for this user's run-time files, else in one of
/// our own below the temporary directory; named by process, so that two sidecars keep apart.
fn default_file() -> Result<PathBuf, Stop> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_dir());
    let uid = rustix::process::geteuid().as_raw();
    let folder = match base {
        Some(base) => base.join("warpdrive"),
        None => std::env::temp_dir().join(format!("warpdrive-{uid}")),
    };
    let refused = |what: String| {
        let folder = folder.display();
        Stop::Failed(format!("credentials folder {folder}: {what}; set s3.credentials_file"))
    };
    match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let meta = std::fs::symlink_metadata(&folder).map_err(|e| refused(e.to_string()))?;
            // Somebody else may have made it first, to be handed the key.
            if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o022 != 0 {
                return Err(refused("is not a directory that only this user writes".to_owned()));
            }
        }
        Err(error) => return Err(refused(error.to_string())),
    }
    Ok(folder.join(format!("credentials-{}", std::process::id())))
}

/// 256 bits in hex.
fn random_token() -> String {
    let bytes: [u8; 32] = rand::rng().random();
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        use std::fmt::Write;
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
