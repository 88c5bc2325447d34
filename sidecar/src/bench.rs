//! `warpdrive bench`: this program beside plain files, its origin, nginx, and whichever peers are
//! installed.
//!
//! Invariant: every figure is measured in this run, next to what it is compared with, on this machine;
//! nothing is taken from elsewhere. The run keeps to its time and its space, and leaves nothing behind
//! but the reports it was asked for. It refuses machines and limits with which figures say nothing.

mod catalogue;
mod cold;
mod compare;
mod data;
mod epochs;
mod gets;
mod halt;
mod kill;
mod link;
mod machine;
mod mapping;
mod origin;
mod own;
mod page;
mod peers;
mod place;
mod reads;
mod report;
mod scale;
mod served;
mod session;
mod sign;
mod spread;
mod storm;
mod target;
mod terminal;
mod tools;
mod upload;
mod usage;
mod walk;
mod warm;
mod wire;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use catalogue::{OWN_TARGETS, REFERENCES, Through, WORKLOADS};
use halt::{During, Halt, Trouble};
use own::Mode;
use peers::RECIPES;
use place::{Killer, Place};
use reads::Files;
use report::{LAYOUT, Report};
use scale::Scale;
use session::Session;
use target::{Kind, Target};
use tools::Tools;

use crate::cli::{Stop, put};
use crate::signals::Signals;

/// What a run is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Workloads by name; empty for all.
    pub(crate) only: Vec<String>,
    /// Targets by name; empty for the usual ones.
    pub(crate) targets: Vec<String>,
    /// Small sizes, one repetition.
    pub(crate) quick: bool,
    pub(crate) time: Duration,
    pub(crate) size_bytes: Option<u64>,
    pub(crate) repetitions: usize,
    /// Where the work folder is made.
    pub(crate) folder: PathBuf,
    pub(crate) tools: Option<PathBuf>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) html: Option<PathBuf>,
    /// Whether `run` knows `--supervise`.
    pub(crate) supervisor: bool,
}

/// How long after the end of its time a run may take to stop by itself.
const GRACE: Duration = Duration::from_secs(20);

/// Measures, prints, writes the reports.
pub(crate) fn bench(options: &Options) -> Result<(), Stop> {
    let workloads: Vec<_> = WORKLOADS.iter().map(|workload| workload.name).collect();
    known(&options.only, "workload", &workloads)?;
    let targets = OWN_TARGETS.iter().map(|(name, _)| *name);
    let targets: Vec<_> = targets.chain(RECIPES.iter().map(|recipe| recipe.name)).collect();
    known(&options.targets, "target", &targets)?;
    // A path that cannot be written is better known now.
    for path in options.json.iter().chain(&options.html) {
        std::fs::write(path, "").map_err(|e| Stop::Unusable(format!("{}: {e}", path.display())))?;
    }
    let halt = Halt::new(options.time);
    let unusable = |trouble: Trouble| Stop::Unusable(trouble.to_string());
    let place = Place::new(&options.folder).map_err(unusable)?;
    let watcher = Watcher::start(&halt, place.killer()).map_err(unusable)?;
    let outcome = run(options, place, &halt);
    drop(watcher);
    let report = outcome.map_err(|trouble| match trouble {
        Trouble::Interrupted => Stop::Interrupted,
        trouble => Stop::Failed(trouble.to_string()),
    })?;
    put(&terminal::tables(&report));
    let text = serde_json::to_string_pretty(&report);
    let text = text.map_err(|e| Stop::Failed(format!("report: {e}")))?;
    let pages = [(&options.json, text), (&options.html, page::page(&report))];
    for (path, text) in pages {
        if let Some(path) = path {
            let written = std::fs::write(path, text);
            written.map_err(|e| Stop::Failed(format!("{}: {e}", path.display())))?;
        }
    }
    if halt.interrupted() { Err(Stop::Interrupted) } else { Ok(()) }
}

/// Refuses names that mean nothing, with the nearest that does.
fn known(given: &[String], what: &str, all: &[&str]) -> Result<(), Stop> {
    for name in given {
        if !all.contains(&name.as_str()) {
            let nearest = all.iter().max_by(|a, b| {
                strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name))
            });
            let nearest = nearest.copied().unwrap_or("");
            let what = format!("no {what} `{name}`; is it `{nearest}`? `bench --list` has all");
            return Err(Stop::Unusable(what));
        }
    }
    Ok(())
}

/// Hears Ctrl-C and the end of time, and ends the processes that somebody may be waiting for.
struct Watcher {
    ended: tokio_util::sync::CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watcher {
    fn start(halt: &Halt, killer: Killer) -> Result<Self, Trouble> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().during("signals")?;
        let ended = tokio_util::sync::CancellationToken::new();
        let (halt, until) = (halt.clone(), ended.clone());
        let signals = runtime.block_on(async { Signals::install() }).during("signals")?;
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let limit = halt.left() + GRACE;
                tokio::select! {
                    () = until.cancelled() => {}
                    () = signals.stop.cancelled() => halt.interrupt(),
                    () = tokio::time::sleep(limit) => {}
                }
                // A read of a mount that hangs ends with the process behind it.
                while !until.is_cancelled() {
                    killer.kill_all();
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            });
        });
        Ok(Self { ended, thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.ended.cancel();
        if let Some(thread) = self.thread.take() {
            // It has nothing left to say.
            let _ = thread.join();
        }
    }
}

fn run(options: &Options, place: Place, halt: &Halt) -> Result<Report, Trouble> {
    let began = Instant::now();
    let scale = if options.quick {
        Scale::quick()
    } else {
        Scale::fitting(place.root(), options.size_bytes, options.repetitions)?
    };
    let tools = Tools::find(options.tools.as_deref());
    let origin = origin::Origin::start(&place, &tools, halt)?;
    let plain = place.folder("plain")?;
    let mut conditions = vec![("origin".to_owned(), origin.about.clone())];
    conditions.extend(scale.facts());
    conditions.extend(words());
    let report = Report {
        layout: LAYOUT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        began: moment(),
        seconds: 0.0,
        cut_short: None,
        repetitions: scale.repetitions,
        machine: machine::facts(place.root()),
        conditions,
        targets: Vec::new(),
        rows: Vec::new(),
        goals: Vec::new(),
        skipped: Vec::new(),
    };
    let session = Session {
        origin,
        plain: Files { root: plain, is_mount: false },
        scale,
        tools,
        halt: halt.clone(),
        only: options.only.clone(),
        targets: options.targets.clone(),
        quick: options.quick,
        began,
        report: Mutex::new(report),
        peaks: Mutex::default(),
        place,
    };
    let outcome = measure(&session, options);
    session.record_peaks();
    let mut report = session.report.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    report.seconds = began.elapsed().as_secs_f64();
    report.goals = catalogue::outcomes(&report.rows);
    report.cut_short = match outcome {
        Ok(()) if halt.left().is_zero() => Some(Trouble::OutOfTime.to_string()),
        Ok(()) => None,
        // What was measured before is shown all the same.
        Err(trouble) if !report.rows.is_empty() => Some(trouble.to_string()),
        Err(trouble) => return Err(trouble),
    };
    Ok(report)
}

/// Everything, in the order of what matters when time runs out.
fn measure(session: &Session, options: &Options) -> Result<(), Trouble> {
    session.say(&format!("origin: {}", session.origin.about));
    let items = session.scale.objects();
    let bytes: u64 = items.iter().map(|item| item.size).sum();
    session.say(&format!("making {} objects, {} MiB", items.len(), bytes / scale::MIB));
    session.origin.fill(&items, &session.halt)?;
    data::write_plain(&session.plain.root, &items, &session.halt)?;

    let mount_possible = mount_possible();
    let wants_any =
        |through| WORKLOADS.iter().any(|one| one.through == through && session.wants(one.name));
    let own = |name, mode| Target { name, kind: Kind::Own(mode), supervised: options.supervisor };
    let mounts = |targets: Vec<(Target, bool)>| -> Result<(), Trouble> {
        for (target, usual) in targets {
            if session.wants_target(target.name, usual) && wants_any(Through::Mount) {
                match &mount_possible {
                    Ok(()) => mount(session, &target)?,
                    Err(why) => session.skip(target.name, why.clone()),
                }
            }
        }
        Ok(())
    };
    mounts(vec![(own("mount", Mode::Usual), true)])?;
    if session.wants_target("s3", true) && wants_any(Through::S3) {
        gets::measure(session)?;
        cold::measure_endpoint(session)?;
        epochs::measure_endpoint(session)?;
        upload::measure(session)?;
    }
    let mut rest = vec![(own("mount-cached", Mode::Cached), !options.quick)];
    let alone = own("mount-alone", Mode::Alone);
    rest.push((Target { supervised: false, ..alone }, false));
    for recipe in RECIPES {
        let wanted = session.wants_target(recipe.name, !options.quick);
        if let (Err(why), true) = (recipe.launch, wanted) {
            session.skip(recipe.name, why);
            continue;
        }
        match peers::find(recipe, &session.tools) {
            Some(program) => rest.push((
                Target { name: recipe.name, kind: Kind::Peer(recipe, program), supervised: false },
                !options.quick,
            )),
            None if wanted => {
                session.skip(recipe.name, format!("not installed: {}", recipe.programs.join(", ")));
            }
            None => {}
        }
    }
    mounts(rest)
}

/// Everything through one mount.
fn mount(session: &Session, target: &Target) -> Result<(), Trouble> {
    warm::measure(session, target)?;
    cold::measure(session, target)?;
    walk::measure(session, target)?;
    epochs::measure(session, target)?;
    kill::measure(session, target)
}

/// Why nothing can be mounted here.
fn mount_possible() -> Result<(), String> {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    opened.map_err(|error| format!("/dev/fuse: {error}"))?;
    let helper = Tools::find(None).program("fusermount3").is_some();
    if rustix::process::geteuid().is_root() || helper {
        return Ok(());
    }
    Err("neither root nor fusermount3".to_owned())
}

/// What the words of the report mean.
fn words() -> Vec<(String, String)> {
    [
        (
            "warm",
            "the cache holds every byte (each was compared with the plain copy and read again); pages \
             that the kernel keeps of a mount's files are dropped before each repetition, and what \
             the program itself reads from stays in the page cache",
        ),
        (
            "plain",
            "written sequentially in writes of 8 MiB on the same file system and left in the page \
             cache; never evicted during the run",
        ),
        ("cold", "a new process with an empty cache for each repetition"),
        ("ratio", "pair by pair of interleaved repetitions (reference, target, reference, target ...)"),
        ("cpu", "all processes of the target; what the reader itself costs is not in it"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

fn moment() -> String {
    let ((year, month, day), (hour, minute, second)) = sign::utc(SystemTime::now());
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// What there is to measure, and what is installed.
pub(crate) fn list(tools: Option<&Path>) -> String {
    let tools = Tools::find(tools);
    // Writing to a String cannot fail.
    let mut out = String::from("workloads:\n");
    for workload in WORKLOADS {
        let _ = writeln!(out, "  {:<14} {}", workload.name, workload.about);
    }
    out.push_str("\ntargets:\n");
    for (name, about) in OWN_TARGETS {
        let _ = writeln!(out, "  {name:<14} {about}");
    }
    for recipe in RECIPES {
        let found = match (recipe.launch, peers::find(recipe, &tools)) {
            (Err(why), _) => format!("never measured ({why}): "),
            (Ok(_), Some(program)) => format!("{}: ", tools::version(&program, recipe.version)),
            (Ok(_), None) => "not installed: ".to_owned(),
        };
        let _ = writeln!(out, "  {:<14} {found}{}", recipe.name, recipe.about);
    }
    out.push_str("\ncompared with:\n");
    for (name, about) in REFERENCES {
        let _ = writeln!(out, "  {name:<14} {about}");
    }
    out
}

/// Says what moved between two reports; an error where something got worse by more than `fail_above`.
pub(crate) fn compare_files(
    before: &Path,
    after: &Path,
    fail_above: Option<f64>,
) -> Result<(), Stop> {
    let read = |path: &Path| -> Result<Report, Stop> {
        let unusable = |what: String| Stop::Unusable(format!("{}: {what}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| unusable(e.to_string()))?;
        serde_json::from_str(&text).map_err(|e| unusable(format!("no report of a bench: {e}")))
    };
    let found = compare::compare(&read(before)?, &read(after)?);
    put(&found.text);
    match fail_above {
        Some(limit) if found.worst > limit => Err(Stop::Failed(format!(
            "worse by {:.0}%, more than {:.0}%",
            found.worst * 100.0,
            limit * 100.0
        ))),
        _ => Ok(()),
    }
}
