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
    /// The file appears whole or not at all, and replaces what was there.
    pub fn write_shared_credentials_file(&self, path: &Path, profile: &str) -> io::Result<()> {
        if profile.is_empty() || profile.contains(['[', ']', '\n', '\r']) {
            let message = format!("profile name `{profile}` cannot stand in a credentials file");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
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
        std::fs::write(&path, "old").unwrap();
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
    fn container_credentials_are_what_botocore_reads() {
        let json: serde_json::Value =
            serde_json::from_str(&AccessKey::generate().container_credentials_json()).unwrap();
        for field in ["AccessKeyId", "SecretAccessKey", "Token", "Expiration"] {
            assert!(json[field].is_string(), "{field}");
        }
        assert!(json["Expiration"].as_str().unwrap().ends_with('Z'));
    }
}
