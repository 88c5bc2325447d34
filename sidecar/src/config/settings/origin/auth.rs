//! Who asks an origin: the `auth` section, and rclone's credentials in `config`.
//!
//! Invariant: one method a backend, named in the file; its keys come from where the method says and
//! from nowhere else. What the method does not use is a problem, not ignored.

use std::path::PathBuf;

use backends::{AzureCredential, GcsCredential, S3Credential};
use secrecy::{ExposeSecret, SecretString};
use serde_yaml::Value;

use super::Scope;
use crate::config::problem::Problems;
use crate::config::secret::{self, SecretText};
use crate::config::typed::TypedAuth;
use crate::config::yaml::{At, FromYaml, nearest};

/// The methods that are built.
const METHODS: &[&str] = &["none", "static", "env", "file"];
/// The Go project's other methods.
const NOT_BUILT: &[&str] =
    &["managed_identity", "service_principal", "oidc_federation", "gcp_wif", "static_keyvault"];

/// A secret as it was typed, and where.
type Placed = (SecretText, At);

/// Keys of an S3 backend that stand in `config`.
pub(super) struct S3Keys {
    pub(super) id: Option<Placed>,
    pub(super) secret: Option<Placed>,
    pub(super) token: Option<Placed>,
}

/// Keys of an Azure backend that stand in `config`.
pub(super) struct AzureKeys {
    pub(super) key: Option<Placed>,
    pub(super) sas: Option<Placed>,
}

/// Keys of a GCS backend that stand in `config`.
pub(super) struct GcsKeys {
    pub(super) file: Option<String>,
    pub(super) json: Option<Placed>,
    pub(super) anonymous: bool,
}

/// The section, once its method is known to be one that is built.
pub(super) fn read(value: &Value, at: &At, problems: &mut Problems) -> Option<TypedAuth> {
    let at = at.key("auth");
    let method = value.get("method").and_then(Value::as_str);
    if let Some(method) = method.filter(|m| NOT_BUILT.contains(m)) {
        problems.add(
            at.key("method"),
            format!("`{method}` is not built yet"),
            format!("use one of {}, or leave this backend out", METHODS.join(", ")),
        );
        return None;
    }
    if let Some(method) = method.filter(|m| !METHODS.contains(m)) {
        let near = nearest(method, METHODS);
        problems.add(at.key("method"), format!("`{method}` is not a method"), near);
        return None;
    }
    TypedAuth::from_yaml(value, &at, problems)
}

/// How the keys are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    None,
    Static,
    Env,
    File,
}

impl Scope<'_, '_> {
    fn auth(&self, key: &str) -> At {
        self.at.key("auth").key(key)
    }

    /// The method: the named one, else `env` where rclone's `env_auth` says so, else `static` where
    /// there are keys, else `none`.
    fn method(&mut self, auth: &TypedAuth, env_auth: bool, keys: bool) -> Method {
        let method = match auth.method.as_deref() {
            Some("static") => Method::Static,
            Some("env") => Method::Env,
            Some("file") => Method::File,
            None if env_auth => Method::Env,
            None if auth.file.is_some() => Method::File,
            None if keys => Method::Static,
            Some(_) | None => Method::None,
        };
        if keys && method != Method::Static {
            let what = "names keys that its method does not use";
            let fix = "write `method: static`, or remove the keys";
            self.problems.add(self.at.key("auth"), what, fix);
        }
        if method != Method::File {
            for (key, given) in [("file", &auth.file), ("profile", &auth.profile)] {
                if given.is_some() {
                    let fix = "write `method: file`, or remove it";
                    self.problems.add(self.auth(key), "is used by method `file` only", fix);
                }
            }
        } else if auth.file.is_none() {
            self.problems.add(self.auth("file"), "is missing", "name the file with the credential");
        }
        method
    }

    /// Keys that belong to another type of backend.
    fn foreign(&mut self, keys: &[(&str, bool)]) {
        for (key, _) in keys.iter().filter(|(_, given)| *given) {
            let fix = "remove it, or correct the backend's type";
            self.problems.add(self.auth(key), "does not belong to this type of backend", fix);
        }
    }

    /// A key that may stand in `config` or in `auth`, with its place.
    fn one_of(
        &mut self,
        key: &str,
        config: Option<Placed>,
        auth: Option<SecretText>,
    ) -> Option<Placed> {
        if let (Some((_, place)), Some(_)) = (&config, &auth) {
            let what = format!("is also given as {place}");
            self.problems.add(self.auth(key), what, "keep one of the two");
        }
        config.or_else(|| Some((auth?, self.auth(key))))
    }

    fn resolve(&mut self, found: Option<Placed>, public: bool) -> Option<SecretString> {
        let (text, at) = found?;
        self.lookup.resolve(&text, public, &at, self.problems)
    }

    fn variable(&self, names: &[&str]) -> Option<SecretString> {
        names
            .iter()
            .find_map(|name| self.lookup.environment.non_empty(name))
            .map(SecretString::from)
    }

    fn unset(&mut self, names: &str) {
        let what = format!("method `env` finds none of {names}");
        self.problems.add(self.auth("method"), what, format!("set {names} for warpdrive"));
    }

    fn file(&mut self, auth: &TypedAuth) -> Option<String> {
        let path = auth.file.as_deref()?;
        match secret::read(path) {
            Ok(text) => Some(text),
            Err(what) => {
                let fix = "name a readable file that holds the credential";
                self.problems.add(self.auth("file"), what, fix);
                None
            }
        }
    }
}

pub(super) fn none_for_files(auth: &TypedAuth, scope: &mut Scope<'_, '_>) {
    if auth.method.as_deref().is_some_and(|method| method != "none") {
        let fix = "write `method: none`, or leave `auth` out";
        scope.problems.add(scope.auth("method"), "a directory takes no credential", fix);
    }
    scope.foreign(&s3_keys(auth));
    scope.foreign(&azure_keys(auth));
    scope.foreign(&gcs_keys(auth));
    scope.foreign(&[("file", auth.file.is_some()), ("profile", auth.profile.is_some())]);
}

fn s3_keys(auth: &TypedAuth) -> [(&'static str, bool); 3] {
    [
        ("access_key_id", auth.access_key_id.is_some()),
        ("secret_access_key", auth.secret_access_key.is_some()),
        ("session_token", auth.session_token.is_some()),
    ]
}

fn azure_keys(auth: &TypedAuth) -> [(&'static str, bool); 3] {
    [
        ("account", auth.account.is_some()),
        ("account_key", auth.account_key.is_some()),
        ("sas_token", auth.sas_token.is_some()),
    ]
}

fn gcs_keys(auth: &TypedAuth) -> [(&'static str, bool); 2] {
    [
        ("service_account_file", auth.service_account_file.is_some()),
        ("service_account_json", auth.service_account_json.is_some()),
    ]
}

pub(super) fn s3(
    config: S3Keys,
    env_auth: bool,
    auth: &TypedAuth,
    scope: &mut Scope<'_, '_>,
) -> Option<(S3Credential, String)> {
    scope.foreign(&azure_keys(auth));
    scope.foreign(&gcs_keys(auth));
    let id = scope.one_of("access_key_id", config.id, auth.access_key_id.clone());
    let secret = scope.one_of("secret_access_key", config.secret, auth.secret_access_key.clone());
    let token = scope.one_of("session_token", config.token, auth.session_token.clone());
    let method = scope.method(auth, env_auth, id.is_some() || secret.is_some());
    let (id, secret, token, from) = match method {
        Method::None => return Some((S3Credential::Anonymous, "anonymous".into())),
        Method::Static => {
            for (key, given) in [("access_key_id", &id), ("secret_access_key", &secret)] {
                if given.is_none() {
                    let fix =
                        "give both halves of the key, the secret one as env:NAME or file:/path";
                    scope.problems.add(scope.auth(key), "is missing", fix);
                }
            }
            let id = scope.resolve(id, true);
            let token = scope.resolve(token, false);
            (id?, scope.resolve(secret, false)?, token, "static")
        }
        Method::Env => {
            let id = scope.variable(&["AWS_ACCESS_KEY_ID"]);
            let secret = scope.variable(&["AWS_SECRET_ACCESS_KEY"]);
            let (Some(id), Some(secret)) = (id, secret) else {
                scope.unset("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
                return None;
            };
            (id, secret, scope.variable(&["AWS_SESSION_TOKEN"]), "env")
        }
        Method::File => {
            let text = scope.file(auth)?;
            let profile = auth.profile.as_deref().unwrap_or("default");
            let value = |key: &str| shared_credential(&text, profile, key);
            let (Some(id), Some(secret)) =
                (value("aws_access_key_id"), value("aws_secret_access_key"))
            else {
                let what = format!("has no key pair in profile `{profile}`");
                let fix = "write aws_access_key_id and aws_secret_access_key below [profile]";
                scope.problems.add(scope.auth("file"), what, fix);
                return None;
            };
            (id, secret, value("aws_session_token"), "file")
        }
    };
    let access_key_id = id.expose_secret().to_owned();
    let shown = format!("{from} {}", shortened(&access_key_id));
    let credential =
        S3Credential::Static { access_key_id, secret_access_key: secret, session_token: token };
    Some((credential, shown))
}

/// A key id for people: enough to recognise it, not enough to misuse it.
fn shortened(id: &str) -> String {
    // Four characters are the type prefix of AWS's ids (AKIA, ASIA).
    let head: String = id.chars().take(4).collect();
    if head.len() == id.len() { id.to_owned() } else { format!("{head}\u{2026}") }
}

/// A value of a shared-credentials file.
fn shared_credential(text: &str, profile: &str, key: &str) -> Option<SecretString> {
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            inside = name.trim() == profile;
        } else if inside
            && let Some((name, value)) = line.split_once('=')
            && name.trim().eq_ignore_ascii_case(key)
            && !value.trim().is_empty()
        {
            return Some(value.trim().into());
        }
    }
    None
}

pub(super) fn azure(
    config: AzureKeys,
    env_auth: bool,
    auth: &TypedAuth,
    scope: &mut Scope<'_, '_>,
) -> Option<(AzureCredential, String)> {
    scope.foreign(&s3_keys(auth));
    scope.foreign(&gcs_keys(auth));
    let key = scope.one_of("account_key", config.key, auth.account_key.clone());
    let from_auth = auth.sas_token.clone().map(|text| (text, scope.auth("sas_token")));
    // A signature that came out of `sas_url` was resolved there and is not looked up again.
    let resolved = config.sas.as_ref().is_some_and(|(_, at)| at.to_string().ends_with("sas_url"));
    let sas = config.sas.or(from_auth);
    let method = scope.method(auth, env_auth, key.is_some() || sas.is_some());
    match method {
        Method::None => Some((AzureCredential::Anonymous, "anonymous".into())),
        Method::Static => {
            if key.is_some() && sas.is_some() {
                let what = "has both an account key and a shared access signature";
                scope.problems.add(scope.at.key("auth"), what, "keep one of the two");
                return None;
            }
            if let Some((text, at)) = sas {
                let sas = if resolved {
                    text.0
                } else {
                    scope.lookup.resolve(&text, false, &at, scope.problems)?
                };
                return Some((AzureCredential::Sas(sas), "static SAS".into()));
            }
            if key.is_none() {
                let fix = "give account_key or sas_token, as env:NAME or file:/path";
                scope.problems.add(scope.auth("account_key"), "is missing", fix);
            }
            Some((AzureCredential::Key(scope.resolve(key, false)?), "static key".into()))
        }
        Method::Env => {
            if let Some(key) = scope.variable(&["AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY"]) {
                return Some((AzureCredential::Key(key), "env key".into()));
            }
            if let Some(sas) = scope.variable(&["AZURE_STORAGE_SAS_TOKEN"]) {
                return Some((AzureCredential::Sas(sas), "env SAS".into()));
            }
            scope.unset("AZURE_STORAGE_KEY, AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN");
            None
        }
        Method::File => {
            let text = scope.file(auth)?;
            // A signature is a query string and always has this; a base64 key never does.
            if text.contains("sig=") {
                return Some((AzureCredential::Sas(text.into()), "file SAS".into()));
            }
            Some((AzureCredential::Key(text.into()), "file key".into()))
        }
    }
}

pub(super) fn gcs(
    config: GcsKeys,
    env_auth: bool,
    auth: &TypedAuth,
    scope: &mut Scope<'_, '_>,
) -> Option<(GcsCredential, String)> {
    scope.foreign(&s3_keys(auth));
    scope.foreign(&azure_keys(auth));
    let json = scope.one_of("service_account_json", config.json, auth.service_account_json.clone());
    let file = match (config.file, auth.service_account_file.clone()) {
        (Some(_), Some(_)) => {
            let at = scope.auth("service_account_file");
            scope.problems.add(at, "is also given in config", "keep one of the two");
            None
        }
        (Some(file), None) => Some((file, scope.config("service_account_file"))),
        (None, file) => file.map(|file| (file, scope.auth("service_account_file"))),
    };
    let keys = file.is_some() || json.is_some();
    let method = scope.method(auth, env_auth, keys);
    if config.anonymous && method != Method::None {
        let what = "is anonymous, and has a credential";
        scope.problems.add(scope.config("anonymous"), what, "keep one of the two");
    }
    match method {
        Method::None => Some((GcsCredential::Anonymous, "anonymous".into())),
        Method::Static => {
            if let Some((file, at)) = file {
                if json.is_some() {
                    scope.problems.add(&at, "is also given as JSON", "keep one of the two");
                }
                return key_file(file, at, scope);
            }
            if json.is_none() {
                let fix = "give service_account_file or service_account_json";
                scope.problems.add(scope.auth("service_account_json"), "is missing", fix);
            }
            let (text, at) = json?;
            let json = scope.lookup.resolve(&text, false, &at, scope.problems)?;
            let email = account_of(json.expose_secret(), &at, scope.problems)?;
            Some((GcsCredential::ServiceAccountJson(json), email))
        }
        Method::Env => {
            let Some(file) = scope.variable(&["GOOGLE_APPLICATION_CREDENTIALS"]) else {
                scope.unset("GOOGLE_APPLICATION_CREDENTIALS");
                return None;
            };
            key_file(file.expose_secret().to_owned(), scope.auth("method"), scope)
        }
        Method::File => key_file(auth.file.clone()?, scope.auth("file"), scope),
    }
}

fn key_file(path: String, at: At, scope: &mut Scope<'_, '_>) -> Option<(GcsCredential, String)> {
    match secret::read(&path) {
        Ok(text) => {
            let email = account_of(&text, &at, scope.problems)?;
            Some((GcsCredential::ServiceAccountFile(PathBuf::from(path)), email))
        }
        Err(what) => {
            scope.problems.add(at, what, "name the JSON key file of a service account");
            None
        }
    }
}

/// The service account's name, where the JSON is a key of one. Other kinds of credential files
/// (a user's, a federation's) are methods that are not built.
fn account_of(json: &str, at: &At, problems: &mut Problems) -> Option<String> {
    let parsed: Option<serde_json::Value> = serde_json::from_str(json).ok();
    let kind = parsed.as_ref().and_then(|v| v.get("type")).and_then(|v| v.as_str());
    if kind.is_some_and(|kind| kind != "service_account") {
        let what = format!("is a credential of type `{}`", kind.unwrap_or_default());
        problems.add(at, what, "use the key of a service account; other types are not built yet");
        return None;
    }
    let email = parsed.as_ref().and_then(|v| v.get("client_email")).and_then(|v| v.as_str());
    let key = parsed.as_ref().and_then(|v| v.get("private_key"));
    let Some(email) = email.filter(|_| key.is_some()) else {
        problems.add(
            at,
            "is not the key of a service account",
            "give the JSON that `gcloud iam service-accounts keys create` writes",
        );
        return None;
    };
    Some(email.to_owned())
}
