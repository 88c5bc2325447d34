//! The table of annotations: names, defaults, meanings, and what is near a wrong name.
//!
//! Invariant: what is not in this table is not an annotation of ours; the document repeats it word by
//! word, which a test compares. Refuses nothing itself.

/// One annotation, as the document shows it.
#[derive(Debug, Clone, Copy)]
pub struct Annotation {
    /// Its name after `warpdrive.io/`.
    pub name: &'static str,
    /// What may stand in it.
    pub values: &'static str,
    /// What holds without it, where that is a value.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

const fn row(
    name: &'static str,
    values: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> Annotation {
    Annotation { name, values, default, meaning }
}

/// Every annotation that a pod may carry.
pub const ANNOTATIONS: &[Annotation] = &[
    row(
        "mode",
        "`sidecar`, `csi`, `s3`",
        "sidecar",
        "who makes the mount: a privileged container of the pod, the node service, nobody",
    ),
    row(
        "config",
        "`NAME[/KEY]`, `configmap:NAME[/KEY]`, `secret:NAME[/KEY]`",
        "warpdrive/warpdrive.yaml",
        "the configuration, a key of a ConfigMap or Secret of the pod's namespace",
    ),
    row(
        "env-from",
        "`secret:NAME`, `configmap:NAME`, separated by commas; a bare `NAME` is a Secret",
        "",
        "variables of the worker, for `env:` and `${...}` in the configuration",
    ),
    row(
        "mounts",
        "absolute paths, separated by commas",
        "/data",
        "where the mount is seen in the containers",
    ),
    row(
        "containers",
        "names, separated by commas",
        "",
        "the containers that get mount and S3 variables; default all, init containers included",
    ),
    row("read-only", "`true`, `false`", "true", "whether the mount is read-only in the containers"),
    row(
        "cache",
        "`emptyDir`, `memory`, `ephemeral[:CLASS]`, `pvc:NAME`, `hostPath:/PATH`",
        "emptyDir",
        "where the disk tier is; `memory` is none",
    ),
    row("cache-size", "a size", "10Gi", "capacity of the disk tier"),
    row("memory", "a size", "256Mi", "capacity of the memory tier"),
    row(
        "warm",
        "`all`, or `BUCKET[/PREFIX]` separated by commas",
        "",
        "what is fetched before the user's containers start",
    ),
    row(
        "s3",
        "`on`, `off`, `anonymous`",
        "on",
        "the S3 endpoint and the variables that point to it",
    ),
    row("s3-port", "1024 to 65535", "9000", "port of the S3 endpoint, on loopback"),
    row("admin-port", "1024 to 65535", "9091", "port of the admin endpoint, on loopback"),
    row("metrics", "`on`, `off`", "on", "metrics on port 9090; with `hostNetwork` always off"),
    row(
        "flush-seconds",
        "0 to 86400",
        "20",
        "time for what is in flight at the end; added to the pod's grace period",
    ),
    row(
        "token-audiences",
        "audiences, separated by commas",
        "",
        "service-account tokens for the worker, one file each below `/var/run/secrets/warpdrive.io/tokens`",
    ),
    row("cpu", "a CPU quantity", "250m", "CPU request of the worker"),
    row(
        "log-level",
        "`error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,backends=debug`",
        "",
        "what the worker logs",
    ),
];

/// The annotation whose name is near a wrong one: at most two letters are different, or it is the
/// same but for `-`, `_` and case.
pub(crate) fn near(wrong: &str) -> Option<&'static str> {
    // Longer text is no slip of a finger, and the distance costs its square.
    const LONGEST: usize = 40;
    if wrong.len() > LONGEST {
        return None;
    }
    let plain = |name: &str| -> String {
        name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
    };
    let wanted = plain(wrong);
    ANNOTATIONS
        .iter()
        .map(|one| (distance(&plain(one.name), &wanted), one.name))
        .filter(|(distance, name)| *distance <= 2 && *distance < name.len() / 2)
        .min()
        .map(|(_, name)| name)
}

/// Letters to add, leave out or change.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_their_annotation() {
        assert_eq!(near("cache_size"), Some("cache-size"));
        assert_eq!(near("cachesize"), Some("cache-size"));
        assert_eq!(near("mount"), Some("mounts"));
        assert_eq!(near("flush-second"), Some("flush-seconds"));
        assert_eq!(near("readOnly"), Some("read-only"));
        assert_eq!(near("colour"), None);
        assert_eq!(near("s9"), None);
        assert_eq!(near(&"x".repeat(10_000)), None);
    }
}
