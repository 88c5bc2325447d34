//! An access key of the endpoint, and the two ways in which programs pick one up.
//!
//! Invariant: a secret is printed by nothing but the two functions that hand it over; its file is
//! never readable by others, not even for a moment.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rand::RngExt;
use secrecy::{ExposeSecret, SecretString};
use time::format_description::well_known::Rfc3339;

/// Letters and digits of generated ids, as AWS uses them.
const ID_ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// Letters of generated secrets: nothing that a shell or an INI file would touch.
const SECRET_ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// Largest file that is looked at before it is replaced: ours have some hundred bytes.
const MAX_REPLACED_BYTES: u64 = 64 << 10;

/// How long a client may keep what the credentials endpoint said. The key does not change while
/// the process lives; asking again after a restart is what makes this finite.
const CREDENTIALS_LIFETIME: Duration = Duration::from_hours(12);

/// An access key: an id that is public and a secret that is not.
#[derive(Debug, Clone)]
pub struct AccessKey {
    /// Names the key in requests.
    pub id: String,
    /// Signs requests.
    pub secret: SecretString,
}

impl AccessKey {
    /// A random key: 100 bits of id and 238 bits of secret from the system's generator.
    pub fn generate() -> Self {
        let id = format!("WARP{}", random(ID_ALPHABET, 20));
        Self { id, secret: random(SECRET_ALPHABET, 40).into() }
    }

    /// Writes an AWS shared-credentials file that has this key under `profile`, with mode 0600.
    /// The file appears whole or not at all, and replaces an earlier one of the same kind.
    ///
    /// Fails with `AlreadyExists`, and leaves everything as it is, where there is a file that holds
    /// more than a key of `profile`, or one that AWS issued: it is somebody's own.
    pub fn write_shared_credentials_file(&self, path: &Path, profile: &str) -> io::Result<()> {
        if profile.is_empty() || profile.contains(['[', ']', '\n', '\r']) {
            let message = format!("profile name `{profile}` cannot stand in a credentials file");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        check_replaceable(path, profile, &self.id)?;
        let name = path.file_name().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "credentials path names no file")
        })?;
        let draft = path.with_file_name(format!(
            ".{}.{}",
            name.to_string_lossy(),
            random(SECRET_ALPHABET, 8)
        ));
        let written = (|| {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            write!(
                file,
                "[{profile}]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
                self.id,
                self.secret.expose_secret()
            )?;
            file.sync_all()?;
            std::fs::rename(&draft, path)
        })();
        if written.is_err() {
            // The draft holds the secret; an error in removing it says no more than the first.
            let _ = std::fs::remove_file(&draft);
        }
        written
    }

    /// What a container-credentials endpoint (`AWS_CONTAINER_CREDENTIALS_FULL_URI`) answers with.
    /// Clients ask again before it expires, 12 hours after this call.
    pub fn container_credentials_json(&self) -> String {
        let expiration = time::OffsetDateTime::from(SystemTime::now() + CREDENTIALS_LIFETIME)
            .replace_nanosecond(0)
            .expect("zero is a nanosecond")
            .format(&Rfc3339)
            .expect("the present can be written in RFC 3339");
        // An empty token is required by clients that insist on the field, and sent by none.
        serde_json::json!({
            "AccessKeyId": self.id,
            "SecretAccessKey": self.secret.expose_secret(),
            "Token": "",
            "Expiration": expiration,
        })
        .to_string()
    }
}

/// Refuses to replace what was not written by `write_shared_credentials_file`.
fn check_replaceable(path: &Path, profile: &str, id: &str) -> io::Result<()> {
    let refused = |what: &str| {
        let message = format!("the file {what}; name a file of its own");
        Err(io::Error::new(io::ErrorKind::AlreadyExists, message))
    };
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !meta.is_file() {
        return refused("is not a regular file");
    }
    if meta.len() > MAX_REPLACED_BYTES {
        return refused("is too large for a single profile");
    }
    let text = std::fs::read(path)?;
    let mut ours = false;
    for line in String::from_utf8_lossy(&text).lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if line.starts_with('[') {
            let name = line.trim_start_matches('[').split(']').next().unwrap_or_default();
            ours = name.trim() == profile;
            if !ours {
                return refused("has other profiles");
            }
            continue;
        }
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        let value = value.trim();
        match name.trim() {
            "aws_access_key_id" if ours => {
                let issued = value.starts_with("AKIA") || value.starts_with("ASIA");
                if issued && value != id {
                    return refused("has a key that AWS issued");
                }
            }
            "aws_secret_access_key" if ours => {}
            _ => return refused("has other settings"),
        }
    }
    Ok(())
}

fn random(alphabet: &[u8], length: usize) -> String {
    let mut rng = rand::rng();
    (0..length).map(|_| alphabet[rng.random_range(0..alphabet.len())] as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn generated_keys_differ_and_hide() {
        let (a, b) = (AccessKey::generate(), AccessKey::generate());
        assert_ne!(a.id, b.id);
        assert_ne!(a.secret.expose_secret(), b.secret.expose_secret());
        assert!(!format!("{a:?}").contains(a.secret.expose_secret()));
    }

    #[test]
    fn the_credentials_file_is_private_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        AccessKey::generate().write_shared_credentials_file(&path, "warpdrive").unwrap();
        let key = AccessKey::generate();
        key.write_shared_credentials_file(&path, "warpdrive").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("[warpdrive]\n") && text.contains(key.secret.expose_secret()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(key.write_shared_credentials_file(&path, "a]\nb").is_err());
        assert!(key.write_shared_credentials_file(&dir.path().join("no/such"), "p").is_err());
    }

    #[test]
    fn a_file_of_the_user_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        let key = AccessKey { id: "AKIDOURS".into(), secret: "s".to_owned().into() };
        let own = "# ours\n[ warpdrive ]\naws_access_key_id=WARPOLD\naws_secret_access_key=x\n";
        for foreign in [
            "[default]\naws_access_key_id = AKIA1\naws_secret_access_key = x\n".to_owned(),
            format!("{own}\n[work]\nrole_arn = x\n"),
            format!("{own}region = eu-west-1\n"),
            "[warpdrive]\naws_access_key_id = AKIA1\naws_secret_access_key = x\n".to_owned(),
            "notes".to_owned(),
        ] {
            std::fs::write(&path, &foreign).unwrap();
            let error = key.write_shared_credentials_file(&path, "warpdrive").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{foreign}");
            assert!(error.to_string().contains("name a file of its own"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), foreign);
        }
        for replaceable in ["", own] {
            std::fs::write(&path, replaceable).unwrap();
            key.write_shared_credentials_file(&path, "warpdrive").unwrap();
            assert!(std::fs::read_to_string(&path).unwrap().contains("AKIDOURS"));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn container_credentials_are_what_botocore_reads() {
        let json: serde_json::Value =
            serde_json::from_str(&AccessKey::generate().container_credentials_json()).unwrap();
        for field in ["AccessKeyId", "SecretAccessKey", "Token", "Expiration"] {
            assert!(json[field].is_string(), "{field}");
        }
        assert!(json["Expiration"].as_str().unwrap().ends_with('Z'));
    }
}
