//! What a start prints: each address and path, and how to use it.
//!
//! Invariant: the lines to export work as they stand when pasted into a shell. The secret half of a
//! key is never among them.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::{AdminAddress, ByteSize};

/// Everything that listens or is mounted.
#[derive(Debug, Clone)]
pub(crate) struct Announcement {
    pub(crate) backends: Vec<Backend>,
    pub(crate) mount: Option<PathBuf>,
    pub(crate) s3: Option<Endpoint>,
    pub(crate) admin: Option<AdminAddress>,
    pub(crate) metrics: Option<SocketAddr>,
    /// Directory and capacity of the disk tier.
    pub(crate) cache: Option<(PathBuf, u64)>,
    pub(crate) notes: Vec<String>,
}

/// One backend.
#[derive(Debug, Clone)]
pub(crate) struct Backend {
    pub(crate) name: String,
    pub(crate) identity: String,
    pub(crate) mount_path: String,
    pub(crate) buckets: Vec<String>,
}

/// The S3 endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) url: String,
    pub(crate) listen: SocketAddr,
    pub(crate) region: String,
    pub(crate) access: Access,
}

/// How clients get in.
#[derive(Debug, Clone)]
pub(crate) enum Access {
    /// Without a key.
    Anonymous,
    /// With a key.
    Signed {
        /// The shared-credentials file that has it.
        file: Option<PathBuf>,
        /// The profile in that file.
        profile: String,
        /// Where AWS clients can fetch it, and the token for that, where it takes one.
        uri: Option<(String, Option<String>)>,
    },
}

impl fmt::Display for Announcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = if self.backends.len() == 1 { "" } else { "s" };
        writeln!(
            f,
            "warpdrive {} serves {} backend{many}",
            env!("CARGO_PKG_VERSION"),
            self.backends.len()
        )?;
        for backend in &self.backends {
            writeln!(f, "  {}  ({})", backend.name, backend.identity)?;
            if let Some(mount) = &self.mount {
                let path = format!("{}{}", mount.display(), backend.mount_path);
                writeln!(f, "    files   {}", path.trim_end_matches('/'))?;
            }
            if self.s3.is_some() {
                let buckets: Vec<_> = backend.buckets.iter().map(|b| format!("s3://{b}")).collect();
                writeln!(f, "    S3      {}", buckets.join(" "))?;
            }
        }
        match &self.cache {
            Some((path, bytes)) => {
                writeln!(f, "  cache     {} ({})", path.display(), ByteSize(*bytes))?;
            }
            None => writeln!(f, "  cache     in memory")?,
        }
        if let Some(s3) = &self.s3 {
            let open = s3.listen.ip().is_unspecified();
            let more =
                if open { format!(" (on every address: {})", s3.listen) } else { String::new() };
            writeln!(f, "  S3        {}{more}", s3.url)?;
        }
        if let Some(admin) = &self.admin {
            writeln!(f, "  admin     {admin}")?;
        }
        if let Some(metrics) = &self.metrics {
            writeln!(f, "  metrics   http://{metrics}/metrics")?;
        }
        for note in &self.notes {
            writeln!(f, "  note      {note}")?;
        }
        match &self.s3 {
            Some(s3) => s3.fmt(f),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nfor S3 clients:")?;
        for line in self.exports() {
            writeln!(f, "  {line}")?;
        }
        if let Access::Signed { uri: Some((uri, token)), file: Some(_), .. } = &self.access {
            writeln!(f, "or, instead of the file:")?;
            writeln!(f, "  export AWS_CONTAINER_CREDENTIALS_FULL_URI={uri}")?;
            if let Some(token) = token {
                writeln!(f, "  export AWS_CONTAINER_AUTHORIZATION_TOKEN={token}")?;
            }
        }
        Ok(())
    }
}

impl Endpoint {
    /// The lines that make a client of this machine use the endpoint.
    pub(crate) fn exports(&self) -> Vec<String> {
        let mut lines = vec![
            format!("export AWS_ENDPOINT_URL_S3={}", self.url),
            format!("export AWS_REGION={0} AWS_DEFAULT_REGION={0}", self.region),
        ];
        match &self.access {
            Access::Anonymous => {
                lines.push("# no key is needed: --no-sign-request, anonymous=True".to_owned());
            }
            Access::Signed { file: Some(file), profile, .. } => {
                let file = quoted(&file.display().to_string());
                lines.push(format!("export AWS_SHARED_CREDENTIALS_FILE={file}"));
                if profile != "default" {
                    lines.push(format!("export AWS_PROFILE={}", quoted(profile)));
                }
            }
            Access::Signed { file: None, .. } => {
                lines.push("# and the key pair of s3.keys, as the client takes it".to_owned());
            }
        }
        lines
    }
}

/// A word that a shell takes as it is.
pub(crate) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=@%+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quoted("/run/user/0/x-1"), "/run/user/0/x-1");
        assert_eq!(quoted("/a b/c'd"), r"'/a b/c'\''d'");
        assert_eq!(quoted("$(x)"), "'$(x)'");
    }

    #[test]
    fn the_lines_to_export_are_complete() {
        let endpoint = Endpoint {
            url: "http://127.0.0.1:9000".into(),
            listen: "127.0.0.1:9000".parse().unwrap(),
            region: "us-east-1".into(),
            access: Access::Signed {
                file: Some("/run/w/credentials".into()),
                profile: "default".into(),
                uri: Some(("http://127.0.0.1:9091/credentials".into(), Some("t0k3n".into()))),
            },
        };
        let text = endpoint.to_string();
        for line in [
            "export AWS_ENDPOINT_URL_S3=http://127.0.0.1:9000\n",
            "export AWS_SHARED_CREDENTIALS_FILE=/run/w/credentials\n",
            "export AWS_REGION=us-east-1 AWS_DEFAULT_REGION=us-east-1\n",
            "export AWS_CONTAINER_AUTHORIZATION_TOKEN=t0k3n\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
