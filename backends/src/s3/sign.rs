//! Signatures, version 4.
//!
//! Invariant: every header that changes what the origin does is signed, over the path as it is
//! sent. Streamed bodies are signed as `UNSIGNED-PAYLOAD`: their checksum would be known too late.

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

use crate::S3Credential;
use crate::http::CallBody;

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

    /// Adds the headers of a signature.
    pub(super) fn sign(
        &self,
        method: &Method,
        url: &Url,
        headers: &mut HeaderMap,
        body: &CallBody,
        region: &str,
    ) -> Result<()> {
        let Some(credentials) = &self.credentials else { return Ok(()) };
        let identity = credentials.clone().into();
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let params: SigningParams<'_> = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name("s3")
            .time(SystemTime::now())
            .settings(settings)
            .build()
            .map_err(failed)?
            .into();
        let mut signed = Vec::with_capacity(headers.len());
        for (name, value) in &*headers {
            signed.push((name.as_str(), std::str::from_utf8(value.as_bytes()).map_err(failed)?));
        }
        let body = match body {
            CallBody::Empty => SignableBody::Bytes(&[]),
            CallBody::Bytes(bytes) => SignableBody::Bytes(bytes),
            CallBody::Stream(_) => SignableBody::UnsignedPayload,
        };
        let request = SignableRequest::new(method.as_str(), url.as_str(), signed.into_iter(), body)
            .map_err(failed)?;
        let (instructions, _) = sign(request, &params).map_err(failed)?.into_parts();
        let (added, _) = instructions.into_parts();
        for header in added {
            let mut value = HeaderValue::from_str(header.value()).map_err(failed)?;
            value.set_sensitive(header.sensitive());
            headers.insert(HeaderName::from_static(header.name()), value);
        }
        Ok(())
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Internal, "request could not be signed").with_source(error)
}
