//! Signatures, version 4.
//!
//! Invariant: every header that changes what the origin does is signed, over the path as it is
//! sent. A streamed body's checksum would be known too late: over TLS, which protects it, it is
//! signed as `UNSIGNED-PAYLOAD`, and without TLS chunk by chunk.

use std::time::SystemTime;

use ::http::{HeaderMap, HeaderName, HeaderValue, Method};
use ::store::{Error, ErrorKind, Result};
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningParams,
    SigningSettings, UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use secrecy::ExposeSecret;
use url::Url;

use super::chunked::{Seed, encode};
use crate::S3Credential;
use crate::http::CallBody;

/// What the payload's checksum is replaced with when chunks are signed.
const CHUNKED: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";

const DECODED_LENGTH: HeaderName = HeaderName::from_static("x-amz-decoded-content-length");

const DATE: HeaderName = HeaderName::from_static("x-amz-date");

/// Signs requests, or leaves them as they are for anonymous callers.
pub(super) struct Signer {
    credentials: Option<Credentials>,
}

impl Signer {
    pub(super) fn new(credential: &S3Credential) -> Self {
        let credentials = match credential {
            S3Credential::Anonymous => None,
            S3Credential::Static { access_key_id, secret_access_key, session_token } => {
                let token = session_token.as_ref().map(|t| t.expose_secret().to_owned());
                let secret = secret_access_key.expose_secret();
                let source = "configured";
                Some(Credentials::new(access_key_id, secret, token, None, source))
            }
        };
        Self { credentials }
    }

    /// Adds the headers of a signature, and gives back the body as it is to be sent.
    pub(super) fn sign(
        &self,
        method: &Method,
        url: &Url,
        headers: &mut HeaderMap,
        body: CallBody,
        region: &str,
    ) -> Result<CallBody> {
        let Some(credentials) = &self.credentials else { return Ok(body) };
        let now = SystemTime::now();
        let chunked = match &body {
            CallBody::Stream(body) if url.scheme() == "http" => Some(body.size),
            _ => None,
        };
        if let Some(size) = chunked {
            headers.insert(DECODED_LENGTH, HeaderValue::from(size));
        }
        let identity = credentials.clone().into();
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let params: SigningParams<'_> = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name("s3")
            .time(now)
            .settings(settings)
            .build()
            .map_err(failed)?
            .into();
        let mut signed = Vec::with_capacity(headers.len());
        for (name, value) in &*headers {
            signed.push((name.as_str(), std::str::from_utf8(value.as_bytes()).map_err(failed)?));
        }
        let payload = match &body {
            CallBody::Empty => SignableBody::Bytes(&[]),
            CallBody::Bytes(bytes) => SignableBody::Bytes(bytes),
            CallBody::Stream(_) if chunked.is_some() => SignableBody::Precomputed(CHUNKED.into()),
            CallBody::Stream(_) => SignableBody::UnsignedPayload,
        };
        let request =
            SignableRequest::new(method.as_str(), url.as_str(), signed.into_iter(), payload)
                .map_err(failed)?;
        let (instructions, signature) = sign(request, &params).map_err(failed)?.into_parts();
        let (added, _) = instructions.into_parts();
        for header in added {
            let mut value = HeaderValue::from_str(header.value()).map_err(failed)?;
            value.set_sensitive(header.sensitive());
            headers.insert(HeaderName::from_static(header.name()), value);
        }
        let body = match body {
            CallBody::Stream(body) if chunked.is_some() => body,
            other => return Ok(other),
        };
        let date = headers.get(DATE).and_then(|date| date.to_str().ok()).unwrap_or_default();
        let secret = credentials.secret_access_key();
        let seed = Seed {
            key: v4::generate_signing_key(secret, now, region, "s3").as_ref().to_vec(),
            scope: format!("{}/{region}/s3/aws4_request", date.get(..8).unwrap_or_default()),
            date: date.to_owned(),
            signature,
        };
        Ok(CallBody::Stream(encode(body, seed)))
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Internal, "request could not be signed").with_source(error)
}
