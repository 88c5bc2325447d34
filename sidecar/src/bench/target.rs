//! A mount that is measured: started with an empty cache, filled, measured, ended.
//!
//! Invariant: a target that is dropped has no process, no mount and no folder left. Its peak memory is
//! looked at before it ends.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::halt::{During, Halt, Trouble};
use super::own::{Mode, Own, Wish};
use super::peers::{self, Launch, Recipe, Setup};
use super::place::{self, Place, Process};
use super::reads::Files;
use super::tools;
use super::usage::{self, Cpu};

/// Peers log in, list and warm up.
const MOUNTED_WITHIN: Duration = Duration::from_secs(30);
/// Formatting and copying a data set into another format.
const PREPARED_WITHIN: Duration = Duration::from_mins(3);

/// What can be started.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// This program.
    Own(Mode),
    /// Another one.
    Peer(&'static Recipe, PathBuf),
}

/// What a mount is called and made of.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) supervised: bool,
}

impl Target {
    /// Whether it is this program.
    pub(crate) fn is_own(&self) -> bool {
        matches!(self.kind, Kind::Own(_))
    }

    /// Its version, for the report.
    pub(crate) fn version(&self) -> String {
        match &self.kind {
            Kind::Own(_) => env!("CARGO_PKG_VERSION").to_owned(),
            Kind::Peer(recipe, program) => tools::version(program, recipe.version),
        }
    }

    /// Starts it with an empty cache and waits until the data set can be read.
    pub(crate) fn start<'a>(
        &self,
        place: &'a Place,
        wish: &Wish,
        plain: &Path,
        halt: &Halt,
    ) -> Result<Running<'a>, Trouble> {
        let running = match &self.kind {
            Kind::Own(mode) => {
                let own = Own::start(place, self.name, *mode, wish, self.supervised, halt)?;
                let settings = own.settings();
                let data = own.mount.join(&wish.origin.bucket);
                let folder = own.folder.clone();
                Running { place, folder, data, settings, inner: Inner::Own(Box::new(own)) }
            }
            Kind::Peer(recipe, program) => peer(place, self.name, recipe, program, wish, plain)?,
        };
        running.wait(halt)?;
        Ok(running)
    }
}

#[derive(Debug)]
enum Inner {
    Own(Box<Own>),
    Peer { process: Option<Process>, program: PathBuf, launch: Launch, mount: PathBuf },
}

/// A mount that is there.
#[derive(Debug)]
pub(crate) struct Running<'a> {
    place: &'a Place,
    folder: PathBuf,
    data: PathBuf,
    /// For the report.
    pub(crate) settings: Vec<String>,
    inner: Inner,
}

fn peer<'a>(
    place: &'a Place,
    name: &str,
    recipe: &Recipe,
    program: &Path,
    wish: &Wish,
    plain: &Path,
) -> Result<Running<'a>, Trouble> {
    let folder = place.folder(name)?;
    let (mount, cache) = (folder.join("mnt"), folder.join("cache"));
    let shared = place.root().join(format!("{name}-shared"));
    // Left once all of it has been done: half a preparation is none.
    let prepared = shared.join("prepared");
    let is_first = !prepared.exists();
    for path in [&mount, &cache, &shared] {
        std::fs::create_dir_all(path).during(path.display())?;
    }
    let key = wish.origin.key.as_ref().ok_or_else(|| "the origin has no key".to_owned())?;
    let launch = recipe.launch.map_err(str::to_owned)?;
    let launch = launch(&Setup {
        program,
        url: &wish.origin.url(),
        bucket: &wish.origin.bucket,
        key,
        cache: &cache,
        mount: &mount,
        cache_bytes: wish.cache_bytes,
        shared: &shared,
        plain,
    });
    let mut settings = vec![recipe.about.to_owned()];
    for line in &launch.prepare {
        let (first, rest) = line.split_first().ok_or_else(|| "an empty command".to_owned())?;
        settings.push(peers::shown(recipe.name, rest, place.root()));
        if is_first {
            let mut command = Command::new(first);
            command.args(rest).envs(launch.environment.iter().cloned());
            prepare(place, command, &folder)?;
        }
    }
    std::fs::write(&prepared, "").during(prepared.display())?;
    settings.push(peers::shown(recipe.name, &launch.arguments, place.root()));
    let process = Some(spawn(place, program, &launch, &folder)?);
    let inner = Inner::Peer { process, program: program.to_owned(), launch, mount: mount.clone() };
    Ok(Running { place, folder, data: mount, settings, inner })
}

fn prepare(place: &Place, command: Command, folder: &Path) -> Result<(), Trouble> {
    let process = place.spawn(command, folder)?;
    let until = std::time::Instant::now() + PREPARED_WITHIN;
    loop {
        match process.ended() {
            Some(status) if status.success() => return Ok(()),
            Some(status) => {
                return Err(Trouble::Failed(format!("{status}: {}", process.tail())));
            }
            None if std::time::Instant::now() > until => {
                return Err(Trouble::Failed("its preparation does not end".to_owned()));
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn spawn(
    place: &Place,
    program: &Path,
    launch: &Launch,
    folder: &Path,
) -> Result<Process, Trouble> {
    let mut command = Command::new(program);
    command.args(&launch.arguments).envs(launch.environment.iter().cloned());
    command.env("HOME", folder);
    place.spawn(command, folder)
}

impl Running<'_> {
    fn wait(&self, halt: &Halt) -> Result<(), Trouble> {
        let (mount, process) = match &self.inner {
            Inner::Own(own) => (&own.mount, Some(&own.process)),
            Inner::Peer { process, mount, .. } => (mount, process.as_ref()),
        };
        halt.wait_for("not mounted", MOUNTED_WITHIN, || {
            process.map_or(Ok(()), Process::check)?;
            Ok(place::is_mounted(mount) && std::fs::read_dir(&self.data).is_ok())
        })
        .map_err(|trouble| match (trouble, process) {
            (Trouble::Failed(what), Some(process)) if what == "not mounted" => {
                Trouble::Failed(format!("{what}: {}", process.tail()))
            }
            (trouble, _) => trouble,
        })
    }

    /// The data set, as this mount shows it.
    pub(crate) fn files(&self) -> Files {
        Files { root: self.data.clone(), is_mount: true }
    }

    /// The sidecar, where it is one.
    pub(crate) fn own(&self) -> Option<&Own> {
        match &self.inner {
            Inner::Own(own) => Some(own),
            Inner::Peer { .. } => None,
        }
    }

    /// The same, to be started again.
    pub(crate) fn own_mut(&mut self) -> Option<&mut Own> {
        match &mut self.inner {
            Inner::Own(own) => Some(own),
            Inner::Peer { .. } => None,
        }
    }

    /// Its processes.
    pub(crate) fn members(&self) -> Vec<u32> {
        let process = match &self.inner {
            Inner::Own(own) => Some(&own.process),
            Inner::Peer { process, .. } => process.as_ref(),
        };
        let known: Vec<u32> = process.map(Process::pid).into_iter().collect();
        usage::members(&self.folder, &known)
    }

    /// CPU time that its processes have used.
    pub(crate) fn cpu(&self) -> Cpu {
        Cpu::of(&self.members())
    }

    /// Peak memory of its processes together.
    pub(crate) fn peak_bytes(&self) -> u64 {
        usage::peak_bytes(&self.members())
    }

    /// Ends it in order and starts it again with the cache that is there.
    pub(crate) fn restart(&mut self, halt: &Halt) -> Result<(), Trouble> {
        match &mut self.inner {
            Inner::Own(own) => {
                own.process.end();
                place::unmount_below(&own.mount);
                own.start_again(self.place, halt)?;
            }
            Inner::Peer { process, program, launch, mount } => {
                *process = None;
                place::unmount_below(mount);
                *process = Some(spawn(self.place, program, launch, &self.folder)?);
            }
        }
        self.wait(halt)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        match &mut self.inner {
            Inner::Own(own) => own.process.end(),
            Inner::Peer { process, .. } => *process = None,
        }
        if let Err(trouble) = Place::clear(&self.folder) {
            eprintln!("warpdrive: {trouble}");
        }
    }
}
