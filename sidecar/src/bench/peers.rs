//! Recipes: how other programs that mount object stores are started so that they do their best.
//!
//! Invariant: every recipe gives the program a disk cache for the whole data set where it has one, long
//! metadata lifetimes and a read-only mount, keeps it in the foreground, and its whole command line
//! stands in the report. Secrets go through the environment, never into a command line that is shown.

use std::path::{Path, PathBuf};

use super::sign::Key;

/// What a recipe is filled in with.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) program: &'a Path,
    /// `http://HOST:PORT` of the origin.
    pub(crate) url: &'a str,
    pub(crate) bucket: &'a str,
    pub(crate) key: &'a Key,
    /// Of this start, and kept over a restart.
    pub(crate) cache: &'a Path,
    pub(crate) mount: &'a Path,
    pub(crate) cache_bytes: u64,
    /// Kept over all starts of one program.
    pub(crate) shared: &'a Path,
    /// The plain copy, for programs with a format of their own.
    pub(crate) plain: &'a Path,
}

/// What is run.
#[derive(Debug, Default)]
pub(crate) struct Launch {
    pub(crate) environment: Vec<(String, String)>,
    /// Command lines that run to their end before the first start.
    pub(crate) prepare: Vec<Vec<String>>,
    /// Arguments of the mount, which stays in the foreground.
    pub(crate) arguments: Vec<String>,
}

/// A program that mounts.
#[derive(Debug)]
pub(crate) struct Recipe {
    pub(crate) name: &'static str,
    /// Names of its executable.
    pub(crate) programs: &'static [&'static str],
    pub(crate) version: &'static [&'static str],
    /// What the settings come to.
    pub(crate) about: &'static str,
    /// Whether its disk cache can be told how large it may be.
    pub(crate) bounded: bool,
    /// How it is started, or why it is never measured.
    pub(crate) launch: Result<fn(&Setup<'_>) -> Launch, &'static str>,
}

const MIB: u64 = 1 << 20;

/// All of them.
pub(crate) static RECIPES: &[Recipe] = &[
    Recipe {
        name: "rclone",
        programs: &["rclone"],
        version: &["version"],
        about: "VFS cache in full mode, 128 MiB of read-ahead, chunks of 32 MiB, directories for an hour",
        bounded: true,
        launch: Ok(rclone),
    },
    Recipe {
        name: "mount-s3",
        programs: &["mount-s3"],
        version: &["--version"],
        about: "disk cache of the whole data set, metadata for an hour",
        bounded: true,
        launch: Ok(mount_s3),
    },
    Recipe {
        name: "s3fs",
        programs: &["s3fs"],
        version: &["--version"],
        about: "disk cache without a bound, 16 parallel requests, 200,000 attributes for an hour",
        bounded: false,
        launch: Ok(s3fs),
    },
    Recipe {
        name: "geesefs",
        programs: &["geesefs"],
        version: &["--version"],
        about: "disk cache from the first hit, 1 GiB of memory, metadata for an hour",
        bounded: false,
        launch: Ok(geesefs),
    },
    Recipe {
        name: "gcsfuse",
        programs: &["gcsfuse"],
        version: &["--version"],
        about: "mounts Google Cloud Storage",
        bounded: true,
        launch: Err(
            "it speaks only the protocol of Google Cloud Storage, and the origin of a run S3",
        ),
    },
    Recipe {
        name: "juicefs",
        programs: &["juicefs"],
        version: &["version"],
        about: "disk cache of the whole data set, metadata in a local file; the data is copied into its \
                own format first",
        bounded: true,
        launch: Ok(juicefs),
    },
    Recipe {
        name: "goofys",
        programs: &["goofys"],
        version: &["--version"],
        about: "no disk cache (it has none of its own), metadata for an hour",
        bounded: false,
        launch: Ok(goofys),
    },
];

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// What the programs with AWS's own client read.
fn aws(key: &Key) -> Vec<(String, String)> {
    [
        ("AWS_ACCESS_KEY_ID", &key.access),
        ("AWS_SECRET_ACCESS_KEY", &key.secret),
        ("AWS_REGION", &key.region),
        ("AWS_DEFAULT_REGION", &key.region),
    ]
    .map(|(name, value)| (name.to_owned(), value.clone()))
    .to_vec()
}

fn rclone(setup: &Setup<'_>) -> Launch {
    let remote = [
        ("TYPE", "s3"),
        ("PROVIDER", "Other"),
        ("ENDPOINT", setup.url),
        ("ACCESS_KEY_ID", &setup.key.access),
        ("SECRET_ACCESS_KEY", &setup.key.secret),
        ("REGION", &setup.key.region),
    ];
    let environment =
        remote.map(|(name, value)| (format!("RCLONE_CONFIG_ORIGIN_{name}"), value.to_owned()));
    let mut arguments = words(
        "mount --read-only --vfs-cache-mode full --vfs-read-ahead 128Mi --buffer-size 16Mi \
         --vfs-read-chunk-size 32Mi --dir-cache-time 1h --attr-timeout 1h --vfs-cache-max-age 24h \
         --poll-interval 0 --use-server-modtime --vfs-cache-poll-interval 10s --config /dev/null",
    );
    arguments.extend([
        format!("--vfs-cache-max-size={}B", setup.cache_bytes),
        format!("--cache-dir={}", text(setup.cache)),
        format!("origin:{}", setup.bucket),
        text(setup.mount),
    ]);
    Launch { environment: environment.to_vec(), arguments, ..Launch::default() }
}

fn mount_s3(setup: &Setup<'_>) -> Launch {
    let mut arguments = words("--foreground --read-only --force-path-style --metadata-ttl 3600");
    arguments.extend([
        format!("--endpoint-url={}", setup.url),
        format!("--region={}", setup.key.region),
        format!("--cache={}", text(setup.cache)),
        format!("--max-cache-size={}", setup.cache_bytes / MIB),
        setup.bucket.to_owned(),
        text(setup.mount),
    ]);
    Launch { environment: aws(setup.key), arguments, ..Launch::default() }
}

fn s3fs(setup: &Setup<'_>) -> Launch {
    let options = format!(
        "ro,url={},endpoint={},use_path_request_style,use_cache={},parallel_count=16,\
         max_stat_cache_size=200000,stat_cache_expire=3600,enable_noobj_cache",
        setup.url,
        setup.key.region,
        text(setup.cache)
    );
    let mut environment = aws(setup.key);
    // Its own names, which came first.
    environment.push(("AWSACCESSKEYID".to_owned(), setup.key.access.clone()));
    environment.push(("AWSSECRETACCESSKEY".to_owned(), setup.key.secret.clone()));
    let arguments = [setup.bucket, &text(setup.mount), "-f", "-o", &options].map(str::to_owned);
    Launch { environment, arguments: arguments.to_vec(), ..Launch::default() }
}

fn geesefs(setup: &Setup<'_>) -> Launch {
    let mut arguments = words(
        "-f -o ro --cache-to-disk-hits 1 --memory-limit 1024 --stat-cache-ttl 1h --list-type 2",
    );
    arguments.extend([
        format!("--endpoint={}", setup.url),
        format!("--region={}", setup.key.region),
        format!("--cache={}", text(setup.cache)),
        setup.bucket.to_owned(),
        text(setup.mount),
    ]);
    Launch { environment: aws(setup.key), arguments, ..Launch::default() }
}

fn juicefs(setup: &Setup<'_>) -> Launch {
    let meta = format!("badger://{}", text(&setup.shared.join("meta")));
    let bucket = format!("{}/juicefs", setup.url);
    let program = text(setup.program);
    let mut format = vec![program.clone(), "format".to_owned()];
    format.extend(words("--storage s3 --no-update"));
    format.extend([format!("--bucket={bucket}"), meta.clone(), "benchvolume".to_owned()]);
    let from = format!("{}/", text(setup.plain));
    let copy = [&program, "sync", &from, "jfs://META/"].map(ToOwned::to_owned);
    let mut arguments =
        words("mount --read-only --no-usage-report --attr-cache 3600 --entry-cache 3600");
    arguments.extend(words("--dir-entry-cache 3600 --free-space-ratio 0.01 --cache-items 0"));
    arguments.extend([
        format!("--cache-dir={}", text(setup.cache)),
        format!("--cache-size={}", setup.cache_bytes / MIB),
        // The endpoint of the format is that of the first start; this one may be behind a slow link.
        format!("--bucket={bucket}"),
        meta.clone(),
        text(setup.mount),
    ]);
    let mut environment = aws(setup.key);
    environment.push(("ACCESS_KEY".to_owned(), setup.key.access.clone()));
    environment.push(("SECRET_KEY".to_owned(), setup.key.secret.clone()));
    environment.push(("META".to_owned(), meta));
    Launch { environment, prepare: vec![format, copy.to_vec()], arguments }
}

fn goofys(setup: &Setup<'_>) -> Launch {
    let mut arguments = words("-f -o ro --stat-cache-ttl 1h --type-cache-ttl 1h");
    arguments.extend([
        format!("--endpoint={}", setup.url),
        format!("--region={}", setup.key.region),
        setup.bucket.to_owned(),
        text(setup.mount),
    ]);
    Launch { environment: aws(setup.key), arguments, ..Launch::default() }
}

/// A command line for people, with folders of this run shortened.
pub(crate) fn shown(program: &str, arguments: &[String], root: &Path) -> String {
    let root = text(root);
    let words = std::iter::once(program).chain(arguments.iter().map(String::as_str));
    words.map(|word| word.replace(&root, "WORK")).collect::<Vec<_>>().join(" ")
}

/// The executable of a recipe by the folders of [`super::tools::Tools`].
pub(crate) fn find(recipe: &Recipe, tools: &super::tools::Tools) -> Option<PathBuf> {
    recipe.programs.iter().find_map(|name| tools.program(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_names_its_mount_and_keeps_the_secret_to_itself() {
        let key = Key { access: "access".into(), secret: "secret!".into(), region: "eu-1".into() };
        for recipe in RECIPES {
            let setup = Setup {
                program: Path::new("/opt/program"),
                url: "http://127.0.0.1:9",
                bucket: "data",
                key: &key,
                cache: Path::new("/srv/bench/t/cache"),
                mount: Path::new("/srv/bench/t/mnt"),
                cache_bytes: 3 << 30,
                shared: Path::new("/srv/bench/shared"),
                plain: Path::new("/srv/bench/plain"),
            };
            let Ok(launch) = recipe.launch else { continue };
            let launch = launch(&setup);
            // What counts requests and slows them down stands where the origin is said to be.
            assert!(
                launch
                    .arguments
                    .iter()
                    .chain(launch.environment.iter().map(|(_, v)| v))
                    .any(|word| word.contains("http://127.0.0.1:9"))
            );
            let line = shown(recipe.name, &launch.arguments, Path::new("/srv/bench"));
            assert!(line.contains("WORK/t/mnt"), "{line}");
            assert!(!line.contains("/srv/bench"), "{line}");
            let prepared = launch.prepare.concat().join(" ");
            assert!(!line.contains("secret!") && !prepared.contains("secret!"), "{line}");
            // A disk cache that holds everything, where there is one.
            let caches = line.contains("WORK/t/cache");
            assert_eq!(caches, recipe.name != "goofys", "{line}");
            assert!(line.contains("ro") || line.contains("--read-only"), "{line}");
        }
    }

    #[test]
    fn the_peers_of_the_design_have_recipes() {
        let names: Vec<_> = RECIPES.iter().map(|recipe| recipe.name).collect();
        let design = ["rclone", "mount-s3", "s3fs", "geesefs", "gcsfuse", "juicefs", "goofys"];
        assert_eq!(names, design);
    }
}
