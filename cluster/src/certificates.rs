//! The certificate that the webhook shows, and where it comes from.
//!
//! Invariant: what is shown is a whole chain with its own key, replaced in one step; a bad new one
//! never takes the place of a good old one. It refuses a key that does not fit its certificate.

mod authority;
mod files;
mod keeper;
mod validity;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use time::UtcDateTime;
use time::format_description::well_known::Rfc3339;

pub(crate) use authority::Plan;
pub(crate) use files::Files;
pub(crate) use keeper::{Keeper, Place};

/// The one set of algorithms of this program.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Seconds since 1970, which is how certificates count.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// A moment for people: `2027-01-31T12:00:00Z`.
pub(crate) fn date(unix: u64) -> String {
    let moment =
        i64::try_from(unix).ok().and_then(|unix| UtcDateTime::from_unix_timestamp(unix).ok());
    moment.and_then(|moment| moment.format(&Rfc3339).ok()).unwrap_or_else(|| unix.to_string())
}

/// A chain with its key, ready to be shown.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    key: Arc<CertifiedKey>,
    /// Seconds since 1970, inclusive.
    pub(crate) not_before: u64,
    /// Seconds since 1970, inclusive.
    pub(crate) not_after: u64,
}

impl Pair {
    /// Reads a chain, leaf first, and its key. The error says which of them is wrong.
    pub(crate) fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, String> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("the certificate is not PEM: {error}"))?;
        let leaf = chain.first().ok_or("the certificate is not PEM: no CERTIFICATE section")?;
        let (not_before, not_after) =
            validity::validity(leaf).ok_or("the certificate cannot be read")?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| format!("the key is not PEM: {error}"))?;
        let key = CertifiedKey::from_der(chain, key, &provider())
            .map_err(|error| format!("certificate and key do not fit: {error}"))?;
        Ok(Self { key: Arc::new(key), not_before, not_after })
    }

    /// Whether it is valid at `now`, in seconds since 1970.
    pub(crate) fn is_valid(&self, now: u64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    fn is_same(&self, other: &Self) -> bool {
        self.key.cert == other.key.cert
    }
}

/// What every new connection is shown.
#[derive(Debug, Default)]
pub(crate) struct Shown(RwLock<Option<Pair>>);

impl Shown {
    /// Shows `pair` from now on; connections that stand keep what they have. Answers whether it is
    /// another one than before.
    pub(crate) fn show(&self, pair: Pair) -> bool {
        let mut shown = self.0.write();
        let changed = shown.as_ref().is_none_or(|old| !old.is_same(&pair));
        *shown = Some(pair);
        changed
    }

    /// When the certificate ends, in seconds since 1970; `Err` says why there is no valid one.
    pub(crate) fn valid_until(&self, now: u64) -> Result<u64, &'static str> {
        match &*self.0.read() {
            None => Err("there is no certificate yet"),
            Some(pair) if pair.is_valid(now) => Ok(pair.not_after),
            Some(pair) if now < pair.not_before => Err("the certificate is not valid yet"),
            Some(_) => Err("the certificate has expired"),
        }
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().as_ref().map(|pair| Arc::clone(&pair.key))
    }
}
