//! `type`, `config` and `auth` of a backend.
//!
//! Invariant: who asks an origin is what the file says and nothing else; a method that is not built
//! is an error, never a fall back to the machine's own identity.

mod auth;

use std::path::PathBuf;

use backends::{AzureConfig, GcsConfig, LocalConfig, OriginKind, S3Config};
use secrecy::ExposeSecret;
use serde_yaml::Value;
use url::Url;

use super::Context;
use crate::config::problem::Problems;
use crate::config::secret::{Lookup, SecretText};
use crate::config::typed::{
    AZURE_WITHOUT_EFFECT, GCS_WITHOUT_EFFECT, S3_WITHOUT_EFFECT, TypedAuth, TypedAzure,
    TypedBackend, TypedGcs, TypedLocal, TypedS3Origin,
};
use crate::config::yaml::{At, FromYaml, nearest};

/// The types that are built.
const TYPES: &[&str] = &["local", "nfs", "s3", "azureblob", "gcs"];

/// What a backend's type, config and auth come to.
pub(crate) struct Origin {
    pub(crate) label: &'static str,
    pub(crate) kind: OriginKind,
    pub(crate) credential: String,
}

/// What every type's validation needs.
struct Scope<'a, 'b> {
    at: &'a At,
    lookup: Lookup<'b>,
    problems: &'a mut Problems,
    notes: &'a mut Vec<String>,
}

impl Scope<'_, '_> {
    fn config(&self, key: &str) -> At {
        self.at.key("config").key(key)
    }

    fn missing(&mut self, key: &str, fix: &str) {
        self.problems.add(self.config(key), "is missing", fix);
    }

    /// One of two names of a setting; both is a problem.
    fn either<T>(&mut self, first: (&str, Option<T>), second: (&str, Option<T>)) -> Option<T> {
        match (first.1, second.1) {
            (Some(_), Some(_)) => {
                let what = format!("is another name of `{}`", first.0);
                self.problems.add(self.config(second.0), what, "keep one of the two");
                None
            }
            (one, other) => one.or(other),
        }
    }

    /// As [`Self::either`], with the place that was used: whether a secret came from a variable is
    /// known by its place.
    fn either_secret(
        &mut self,
        first: (&str, Option<SecretText>),
        second: (&str, Option<SecretText>),
    ) -> Option<(SecretText, At)> {
        let place = |name: &str, text: Option<SecretText>| Some((text?, self.config(name)));
        let one = (first.0, place(first.0, first.1));
        let other = (second.0, place(second.0, second.1));
        self.either(one, other)
    }

    fn endpoint(&mut self, typed: Option<String>) -> Option<String> {
        let typed = typed?;
        // rclone takes `minio:9000`; a scheme is needed to know whether to trust the network.
        let good = Url::parse(&typed)
            .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        // It is printed and is a part of metrics and logs, so nothing that may be a credential
        // stands in it, also not in one that is wrong in another way.
        if typed.contains(['@', '?', '#']) {
            let what = "has a user name, a password, a query or a fragment";
            let fix = "write http://host:port or https://host; credentials belong in `auth`";
            self.problems.add(self.config("endpoint"), what, fix);
        } else if !good {
            let what = format!("`{typed}` is not a URL of a service");
            let fix = "write http://host:port or https://host";
            self.problems.add(self.config("endpoint"), what, fix);
        }
        Some(typed.trim_end_matches('/').to_owned())
    }

    fn without_effect(&mut self, config: &Value, names: &[&str]) {
        for name in names.iter().filter(|name| config.get(**name).is_some_and(|v| !v.is_null())) {
            self.notes.push(format!("{}: has no effect here", self.config(name)));
        }
    }
}

pub(crate) fn validate(
    typed: &TypedBackend,
    at: &At,
    allow_inline: bool,
    notes: &mut Vec<String>,
    context: &mut Context<'_>,
) -> Option<Origin> {
    let Some(kind) = typed.r#type.as_deref() else {
        let fix = format!("write one of: {}", TYPES.join(", "));
        context.problems.add(at.key("type"), "is missing", fix);
        return None;
    };
    let Some(label) = TYPES.iter().find(|known| **known == kind).copied() else {
        let near = nearest(kind, TYPES);
        let hint = if near.starts_with("write") { format!("{near}; ") } else { String::new() };
        context.problems.add(
            at.key("type"),
            format!("`{kind}` is not a type of backend that is built"),
            format!("{hint}types: {}", TYPES.join(", ")),
        );
        return None;
    };
    let lookup =
        Lookup { environment: context.environment, variables: context.variables, allow_inline };
    let mut scope = Scope { at, lookup, problems: &mut context.problems, notes };
    let config = typed.config.clone().unwrap_or(Value::Null);
    let auth = typed.auth.as_ref().map(|value| auth::read(value, at, scope.problems));
    let auth = match auth {
        None => TypedAuth::default(),
        Some(Some(auth)) => auth,
        // The method itself is wrong: its keys mean nothing, the rest of the backend does.
        Some(None) => {
            let _ = origin(label, &config, &TypedAuth::default(), &mut scope);
            return None;
        }
    };
    let (kind, credential) = origin(label, &config, &auth, &mut scope)?;
    Some(Origin { label, kind, credential })
}

fn origin(
    label: &str,
    config: &Value,
    auth: &TypedAuth,
    scope: &mut Scope<'_, '_>,
) -> Option<(OriginKind, String)> {
    match label {
        "s3" => s3(config, auth, scope),
        "azureblob" => azure(config, auth, scope),
        "gcs" => gcs(config, auth, scope),
        _ => local(config, auth, label == "nfs", scope),
    }
}

fn local(
    config: &Value,
    auth: &TypedAuth,
    nfs: bool,
    scope: &mut Scope<'_, '_>,
) -> Option<(OriginKind, String)> {
    let typed = TypedLocal::from_yaml(config, &scope.at.key("config"), scope.problems)?;
    auth::none_for_files(auth, scope);
    let root = scope.either(("path", typed.path), ("root", typed.root));
    let root = scope.either(("path", root), ("dir", typed.dir));
    let Some(root) = root else {
        scope.missing("path", "name the directory, such as `path: /srv/train`");
        return None;
    };
    let root = PathBuf::from(root);
    if !root.is_absolute() {
        let what = format!("`{}` is not an absolute path", root.display());
        scope.problems.add(scope.config("path"), what, "write the whole path of the directory");
    }
    Some((OriginKind::Local(LocalConfig { root, nfs }), "none (files)".to_owned()))
}

fn s3(config: &Value, auth: &TypedAuth, scope: &mut Scope<'_, '_>) -> Option<(OriginKind, String)> {
    let typed = TypedS3Origin::from_yaml(config, &scope.at.key("config"), scope.problems)?;
    scope.without_effect(config, S3_WITHOUT_EFFECT);
    let path_style = scope
        .either(("path_style", typed.path_style), ("force_path_style", typed.force_path_style));
    let endpoint = scope.endpoint(typed.endpoint);
    let id = scope
        .either_secret(("access_key_id", typed.access_key_id), ("access_key", typed.access_key));
    let secret = scope.either_secret(
        ("secret_access_key", typed.secret_access_key),
        ("secret_key", typed.secret_key),
    );
    let token = typed.session_token.map(|text| (text, scope.config("session_token")));
    let keys = auth::S3Keys { id, secret, token };
    let credential = auth::s3(keys, typed.env_auth.unwrap_or(false), auth, scope);
    let elsewhere = typed.provider.as_deref().is_some_and(|p| !p.eq_ignore_ascii_case("aws"));
    if elsewhere && endpoint.is_none() {
        let what = "is missing, and the provider is not AWS";
        let fix = "name the service, such as `endpoint: https://vast.example:443`";
        scope.problems.add(scope.config("endpoint"), what, fix);
    }
    let bucket = typed.bucket.filter(|b| !b.is_empty());
    if bucket.is_none() {
        scope.missing("bucket", "name the bucket at the origin");
    }
    let region = typed.region.filter(|r| !r.is_empty());
    let region =
        region.or_else(|| Some(scope.lookup.environment.non_empty("AWS_REGION")?.to_owned()));
    // Every compatible server takes it; AWS says which region is right, and that one is used.
    let region = region.unwrap_or_else(|| "us-east-1".to_owned());
    let (credential, shown) = credential?;
    let prefix = typed.prefix.unwrap_or_default();
    let kind = S3Config { bucket: bucket?, prefix, region, endpoint, path_style, credential };
    Some((OriginKind::S3(kind), shown))
}

fn azure(
    config: &Value,
    auth: &TypedAuth,
    scope: &mut Scope<'_, '_>,
) -> Option<(OriginKind, String)> {
    let typed = TypedAzure::from_yaml(config, &scope.at.key("config"), scope.problems)?;
    scope.without_effect(config, AZURE_WITHOUT_EFFECT);
    let mut account =
        scope.either(("account", typed.account), ("account_name", typed.account_name));
    let mut container =
        scope.either(("container", typed.container), ("container_name", typed.container_name));
    let mut endpoint = scope.endpoint(typed.endpoint);
    let key = scope.either_secret(("account_key", typed.account_key), ("key", typed.key));
    let mut sas = typed.sas_token.map(|text| (text, scope.config("sas_token")));
    if let Some(text) = typed.sas_url {
        let at = scope.config("sas_url");
        let url = scope.lookup.resolve(&text, false, &at, scope.problems)?;
        let Some(parts) = SasUrl::parse(url.expose_secret()) else {
            let fix = "write https://ACCOUNT.blob.core.windows.net/CONTAINER?sv=...&sig=...";
            scope.problems.add(at, "is not the URL of a container with a signature", fix);
            return None;
        };
        account = account.or(Some(parts.account));
        container = container.or(parts.container);
        endpoint = endpoint.or(Some(parts.endpoint));
        sas = Some((SecretText(parts.token), at));
    }
    account = account
        .or(auth.account.clone())
        .or_else(|| Some(scope.lookup.environment.non_empty("AZURE_STORAGE_ACCOUNT")?.to_owned()));
    let keys = auth::AzureKeys { key, sas };
    let credential = auth::azure(keys, typed.env_auth.unwrap_or(false), auth, scope);
    if account.is_none() {
        scope.missing("account", "name the storage account");
    }
    if container.is_none() {
        scope.missing("container", "name the container");
    }
    let (credential, shown) = credential?;
    let prefix = typed.prefix.unwrap_or_default();
    let kind =
        AzureConfig { account: account?, container: container?, prefix, endpoint, credential };
    Some((OriginKind::Azure(kind), shown))
}

/// rclone's `sas_url`: the account, the container and the signature in one.
struct SasUrl {
    account: String,
    container: Option<String>,
    endpoint: String,
    token: secrecy::SecretString,
}

impl SasUrl {
    fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text).ok()?;
        let host = url.host_str()?;
        let token = url.query().filter(|q| q.contains("sig="))?;
        let account = host.split('.').next()?.to_owned();
        let container = url.path().trim_matches('/');
        // An emulator's address has the account in its path, which this form cannot tell apart.
        if container.contains('/') || !host.contains('.') {
            return None;
        }
        Some(Self {
            account,
            container: (!container.is_empty()).then(|| container.to_owned()),
            endpoint: url.origin().ascii_serialization(),
            token: token.into(),
        })
    }
}

fn gcs(
    config: &Value,
    auth: &TypedAuth,
    scope: &mut Scope<'_, '_>,
) -> Option<(OriginKind, String)> {
    let typed = TypedGcs::from_yaml(config, &scope.at.key("config"), scope.problems)?;
    scope.without_effect(config, GCS_WITHOUT_EFFECT);
    let endpoint = scope.endpoint(typed.endpoint);
    let json = scope.either_secret(
        ("service_account_json", typed.service_account_json),
        ("service_account_credentials", typed.service_account_credentials),
    );
    let keys = auth::GcsKeys {
        file: typed.service_account_file,
        json,
        anonymous: typed.anonymous.unwrap_or(false),
    };
    let credential = auth::gcs(keys, typed.env_auth.unwrap_or(false), auth, scope);
    let bucket = typed.bucket.filter(|b| !b.is_empty());
    if bucket.is_none() {
        scope.missing("bucket", "name the bucket at the origin");
    }
    let (credential, shown) = credential?;
    let prefix = typed.prefix.unwrap_or_default();
    Some((OriginKind::Gcs(GcsConfig { bucket: bucket?, prefix, endpoint, credential }), shown))
}
