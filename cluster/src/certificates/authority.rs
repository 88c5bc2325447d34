//! Our own certificate authority, and the rule by which it is replaced.
//!
//! Invariant: whoever trusts [`Kept::bundle`], as it is now or as it was up to [`Plan::settle`] ago,
//! can verify every certificate that this has issued and that has not expired. It refuses to issue
//! from an authority that is not known to be trusted, as long as an older one can still do it.
//!
//! Life of an authority: made at two thirds of its predecessor's life, put into the bundle, issuing
//! once the bundle has been seen everywhere for `settle`, without key as soon as the certificate that is shown is
//! of a newer one, and out of the bundle when the last certificate of it has expired.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Pair, provider, validity};

/// A clock may be this much behind ours, and still find a new certificate valid.
const SKEW_SECONDS: u64 = 3600;

/// Key of the Secret with the authorities and their keys; the only one that is read back with the pair.
pub(super) const AUTHORITY_KEY: &str = "authority.json";
const BUNDLE_KEY: &str = "ca.crt";
const CERTIFICATE_KEY: &str = "tls.crt";
const PRIVATE_KEY: &str = "tls.key";

/// For whom certificates are made, and for how long.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// DNS names and addresses by which the API server calls.
    pub(crate) names: Vec<String>,
    /// Life of an authority; at least three times that of a certificate and of `settle`.
    pub(crate) authority: Duration,
    /// Life of a certificate; the next is made at two thirds of it.
    pub(crate) certificate: Duration,
    /// How long a bundle takes to reach every API server.
    pub(crate) settle: Duration,
}

/// A PEM private key that no message shows.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct PrivatePem(String);

impl fmt::Debug for PrivatePem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Authority {
    name: String,
    certificate: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<PrivatePem>,
    /// When the last certificate that it issued expires, in seconds since 1970.
    issued_until: u64,
}

impl Authority {
    fn generate(now: u64, plan: &Plan) -> Result<Self, String> {
        let key = KeyPair::generate().map_err(said)?;
        // Names differ, so that a verifier never tries the one key for the other's signature.
        let id = key.public_key_raw().iter().rev().take(6);
        let id = id.fold(0_u64, |id, &byte| id << 8 | u64::from(byte));
        let name = format!("warpdrive webhook authority {id:012x}");
        let mut params = Self::params(&name);
        (params.not_before, params.not_after) = life(now, now + plan.authority.as_secs())?;
        let certificate = params.self_signed(&key).map_err(said)?.pem();
        let key = Some(PrivatePem(key.serialize_pem()));
        Ok(Self { name, certificate, key, issued_until: 0 })
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params
    }

    /// First and last second at which it is valid; `None` where the certificate cannot be read.
    fn life(&self) -> Option<(u64, u64)> {
        validity::validity(&CertificateDer::from_pem_slice(self.certificate.as_bytes()).ok()?)
    }

    fn ends(&self) -> Option<u64> {
        self.life().map(|(_, last)| last)
    }

    fn is_valid(&self, now: u64) -> bool {
        self.life().is_some_and(|(first, last)| first <= now && last > now)
    }

    fn issue(
        &self,
        key: &PrivatePem,
        now: u64,
        until: u64,
        names: &[String],
    ) -> Result<(String, PrivatePem), String> {
        let authority = KeyPair::from_pem(&key.0).map_err(said)?;
        let issuer = Issuer::new(Self::params(&self.name), authority);
        let mut params = CertificateParams::new(names).map_err(said)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "warpdrive webhook");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = life(now, until)?;
        let key = KeyPair::generate().map_err(said)?;
        let certificate = params.signed_by(&key, &issuer).map_err(said)?;
        Ok((certificate.pem(), PrivatePem(key.serialize_pem())))
    }
}

fn said(error: impl fmt::Display) -> String {
    format!("a certificate cannot be made: {error}")
}

fn life(now: u64, until: u64) -> Result<(OffsetDateTime, OffsetDateTime), String> {
    let at = |seconds: u64| {
        OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).map_err(said)?).map_err(said)
    };
    Ok((at(now.saturating_sub(SKEW_SECONDS))?, at(until)?))
}

/// All that the Secret keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Oldest first.
    authorities: Vec<Authority>,
    /// The name of the authority that issued the certificate.
    issuer: String,
    #[serde(skip)]
    certificate: String,
    #[serde(skip)]
    key: PrivatePem,
}

impl Kept {
    /// Reads a Secret. One without our key is empty, unless it holds somebody else's certificate:
    /// that is an error. What cannot be read otherwise is empty too, and will be made anew.
    pub(super) fn from_data(data: &BTreeMap<String, ByteString>) -> Result<Self, String> {
        let text =
            |key: &str| data.get(key).map(|value| String::from_utf8_lossy(&value.0).into_owned());
        let Some(own) = data.get(AUTHORITY_KEY) else {
            return match text(CERTIFICATE_KEY) {
                Some(certificate) if !certificate.is_empty() => Err(format!(
                    "it holds a `{CERTIFICATE_KEY}` and no `{AUTHORITY_KEY}`: it is somebody \
                     else's; mount it and name its files with --tls-cert and --tls-key, or name \
                     another Secret"
                )),
                _ => Ok(Self::default()),
            };
        };
        let mut kept: Self = serde_json::from_slice(&own.0).unwrap_or_default();
        kept.certificate = text(CERTIFICATE_KEY).unwrap_or_default();
        kept.key = PrivatePem(text(PRIVATE_KEY).unwrap_or_default());
        Ok(kept)
    }

    /// What a Secret is to hold.
    pub(super) fn to_data(&self) -> BTreeMap<String, ByteString> {
        let own = serde_json::to_vec(self).expect("strings and numbers are always JSON");
        [
            (AUTHORITY_KEY, own),
            (BUNDLE_KEY, self.bundle().into_bytes()),
            (CERTIFICATE_KEY, self.certificate.clone().into_bytes()),
            (PRIVATE_KEY, self.key.0.clone().into_bytes()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), ByteString(value)))
        .collect()
    }

    /// The certificates that whoever calls has to trust, PEM.
    pub(super) fn bundle(&self) -> String {
        self.authorities.iter().map(|authority| authority.certificate.as_str()).collect()
    }

    /// The certificate with its key.
    pub(super) fn pair(&self) -> Result<Pair, String> {
        Pair::from_pem(self.certificate.as_bytes(), self.key.0.as_bytes())
    }

    /// The newest authority's certificate, PEM: what a bundle has to hold before it may issue.
    pub(super) fn newest(&self) -> Option<&str> {
        self.authorities.last().map(|authority| authority.certificate.as_str())
    }

    /// When the newest authority ends, in seconds since 1970; 0 without one.
    pub(super) fn authority_ends(&self) -> u64 {
        self.authorities.last().and_then(Authority::ends).unwrap_or(0)
    }

    /// Makes and takes away what is due at `now`, and answers whether anything changed.
    ///
    /// `settled`: every configuration has held [`Kept::newest`], as it is before the call, for
    /// [`Plan::settle`].
    pub(super) fn advance(&mut self, now: u64, plan: &Plan, settled: bool) -> Result<bool, String> {
        let (before, mut settled) = (self.clone(), settled);
        // One that is unreadable, expired or of a clock that was ahead can verify nothing.
        self.authorities.retain(|authority| authority.is_valid(now));
        if self.authorities.is_empty()
            || now + plan.authority.as_secs() / 3 >= self.authority_ends()
        {
            self.authorities.push(Authority::generate(now, plan)?);
            settled = false;
        }
        self.renew(now, plan, settled)?;
        let newest = self.authorities.len() - 1;
        if self.authorities[newest].name == self.issuer {
            for old in &mut self.authorities[..newest] {
                old.key = None;
            }
            let mut index = 0;
            self.authorities.retain(|authority| {
                index += 1;
                index > newest || authority.issued_until >= now
            });
        }
        Ok(*self != before)
    }

    /// Issues a certificate when the present one is due, or is not one that a caller accepts.
    fn renew(&mut self, now: u64, plan: &Plan, settled: bool) -> Result<(), String> {
        let last = self.authorities.len() - 1;
        let with_key = |authority: &Authority| {
            authority.key.as_ref().is_some_and(|key| KeyPair::from_pem(&key.0).is_ok())
        };
        let older = self.authorities[..last].iter().rposition(with_key);
        let chosen = if settled { last } else { older.unwrap_or(last) };
        if !with_key(&self.authorities[chosen]) {
            // Somebody damaged it: another one is the only way on.
            self.authorities.push(Authority::generate(now, plan)?);
            return self.renew(now, plan, false);
        }
        let authority = &self.authorities[chosen];
        let until = (now + plan.certificate.as_secs()).min(authority.ends().unwrap_or(now));
        let ends = self.pair().ok().map(|pair| pair.not_after);
        let is_due = match ends {
            Some(ends) if self.is_accepted(now, &plan.names) => {
                now + plan.certificate.as_secs() / 3 >= ends && until > ends
            }
            _ => true,
        };
        if !is_due {
            return Ok(());
        }
        let key = authority.key.clone().unwrap_or_default();
        (self.certificate, self.key) = authority.issue(&key, now, until, &plan.names)?;
        self.issuer.clone_from(&authority.name);
        let authority = &mut self.authorities[chosen];
        authority.issued_until = authority.issued_until.max(until);
        Ok(())
    }

    /// Whether a caller that trusts the bundle accepts the certificate for each of `names`.
    fn is_accepted(&self, now: u64, names: &[String]) -> bool {
        let Ok(pair) = self.pair() else { return false };
        // A verifier of ours takes a trusted certificate without its dates; callers look at them.
        let valid = self.authorities.iter().filter(|authority| authority.is_valid(now));
        let bundle: String = valid.map(|authority| authority.certificate.as_str()).collect();
        accepts(&bundle, &pair, now, names)
    }
}

/// Whether a verifier that trusts `bundle` accepts what `pair` shows for each of `names`.
fn accepts(bundle: &str, pair: &Pair, now: u64, names: &[String]) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(
        CertificateDer::pem_slice_iter(bundle.as_bytes()).filter_map(Result::ok),
    );
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    let (Ok(verifier), Some((leaf, others))) = (verifier, pair.key.cert.split_first()) else {
        return false;
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    names.iter().all(|name| {
        ServerName::try_from(name.as_str())
            .is_ok_and(|name| verifier.verify_server_cert(leaf, others, &name, &[], now).is_ok())
    })
}

#[cfg(test)]
mod tests;
