//! Which `Host` values are answered.
//!
//! Invariant: a name that an attacker's DNS can point here (rebinding) is never answered; loopback
//! names, addresses that reach this socket and configured names are. `bucket.<name>` of an accepted
//! name is virtual-host style addressing.

use std::net::{IpAddr, SocketAddr};

use s3s::S3ErrorCode;

use crate::failure::{Failure, Outcome};

/// The accepted names.
#[derive(Debug, Clone)]
pub(crate) struct Hosts {
    bound: IpAddr,
    /// Lower case, without port.
    names: Vec<String>,
}

impl Hosts {
    /// Accepts `localhost` and its subdomains, loopback addresses, the bound address (any address
    /// where all are bound) and `extra`.
    pub(crate) fn new(bound: SocketAddr, extra: &[String]) -> Self {
        let mut names: Vec<String> = extra.iter().map(|name| without_port(name)).collect();
        names.push("localhost".to_owned());
        Self { bound: bound.ip(), names }
    }

    /// Checks a `Host`; yields the bucket where the name carries one.
    pub(crate) fn check<'h>(&self, host: &'h str) -> Outcome<Option<&'h str>> {
        let name = strip_port(host);
        if let Some(address) = address(name) {
            let reaches = address.is_loopback()
                || address == self.bound
                || self.bound.is_unspecified()
                || self.names.iter().any(|known| *known == name.to_ascii_lowercase());
            return if reaches { Ok(None) } else { Err(misdirected(host)) };
        }
        let lower = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        for known in &self.names {
            if lower == *known {
                return Ok(None);
            }
            let bucket = lower.strip_suffix(known.as_str()).and_then(|rest| rest.strip_suffix('.'));
            if let Some(bucket) = bucket.filter(|bucket| !bucket.is_empty()) {
                return Ok(Some(&name[..bucket.len()]));
            }
        }
        Err(misdirected(host))
    }
}

fn misdirected(host: &str) -> Failure {
    Failure::with_status(
        http::StatusCode::MISDIRECTED_REQUEST,
        S3ErrorCode::InvalidHostHeader,
        format!("host `{host}` is not served here; add it to the endpoint's allowed hosts"),
    )
}

fn address(name: &str) -> Option<IpAddr> {
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    bare.parse().ok()
}

fn strip_port(host: &str) -> &str {
    if host.ends_with(']') {
        return host;
    }
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => {
            // A bare IPv6 address has colons of its own and no port.
            if name.contains(':') && !name.ends_with(']') { host } else { name }
        }
        _ => host,
    }
}

fn without_port(name: &str) -> String {
    let name = strip_port(name.trim());
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rebinding_names_are_refused() {
        let hosts = Hosts::new("127.0.0.1:9000".parse().unwrap(), &["warp.internal:9000".into()]);
        for good in [
            "localhost",
            "LOCALHOST:9000",
            "localhost.:9000",
            "127.0.0.1:9000",
            "127.3.2.1",
            "[::1]:9000",
            "warp.internal",
            "warp.internal:80",
        ] {
            assert_eq!(hosts.check(good).unwrap(), None, "{good}");
        }
        for bad in ["evil.example", "evil.example:9000", "localhost.evil.example", "10.0.0.1", ""] {
            assert_eq!(hosts.check(bad).unwrap_err().status().as_u16(), 421, "{bad}");
        }
    }

    #[test]
    fn subdomains_are_buckets() {
        let hosts = Hosts::new("0.0.0.0:9000".parse().unwrap(), &["s3.test".into()]);
        assert_eq!(hosts.check("Train-1.localhost:9000").unwrap(), Some("Train-1"));
        assert_eq!(hosts.check("a.b.s3.test").unwrap(), Some("a.b"));
        assert_eq!(hosts.check("10.1.2.3:9000").unwrap(), None);
    }
}
