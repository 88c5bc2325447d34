//! Warm GETs over many connections, beside nginx.
//!
//! Invariant: the same client asks every server for the same names in the same order; the servers'
//! files lie in the page cache, and each was asked for everything before. The ratio is to whichever
//! way of nginx was faster, the CPU ratio to whichever was cheaper.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::catalogue::{CPU_PER_GIB, CPU_PER_REQUEST, CPU_RATIO, P99};
use super::cold;
use super::data::Item;
use super::halt::{During, Trouble};
use super::origin::free_port;
use super::place::Process;
use super::report::{Row, TargetFacts};
use super::scale::{GIB, MIB, Scale};
use super::served::Served;
use super::session::Session;
use super::spread::Spread;
use super::storm::{Harvest, storm};
use super::tools;
use super::usage::{self, Cpu};
use super::wire::Endpoint;

/// Of one client.
const CONNECTIONS: usize = 16;
/// For what a cache does after it was filled.
const SETTLE: Duration = Duration::from_millis(1500);

type Items = fn(&Scale) -> &Vec<Item>;
static ALL: &[(&str, Items)] = &[
    ("s3-1k", |scale| &scale.tiny),
    ("s3-128k", |scale| &scale.small),
    ("s3-1m", |scale| &scale.middle),
    ("s3-8m", |scale| &scale.large),
];

/// A web server over the plain copy.
struct Nginx {
    name: &'static str,
    folder: PathBuf,
    address: SocketAddr,
    process: Process,
}

impl Nginx {
    fn start(session: &Session, name: &'static str, sendfile: bool) -> Result<Self, Trouble> {
        let program = session.tools.program("nginx");
        let program = program.ok_or_else(|| "not installed: nginx".to_owned())?;
        let folder = session.place.folder(name)?;
        let port = free_port()?;
        let at = folder.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {at}/{name};\n"))
            .concat();
        // Root's workers would become another user, who may not look into the folder.
        let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
        let sending = if sendfile { "sendfile on;" } else { "sendfile off; output_buffers 2 1m;" };
        let root = session.plain.root.display();
        let text = format!(
            "{user}daemon off; pid {at}/pid; error_log {at}/error.log;\n\
             worker_processes 1; events {{ worker_connections 256; }}\n\
             http {{ access_log off; {sending} keepalive_requests 1000000; tcp_nopush on;\n{temporary}\
             server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
        );
        let file = folder.join("nginx.conf");
        std::fs::write(&file, text).during(file.display())?;
        let mut command = Command::new(&program);
        command.arg("-e").arg(folder.join("early.log")).arg("-c").arg(&file);
        command.arg("-p").arg(&folder);
        let process = session.place.spawn(command, &folder)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        session.halt.wait_for("nginx: no answer", Duration::from_secs(20), || {
            process.check()?;
            Ok(TcpStream::connect(address).is_ok())
        })?;
        session.describe(TargetFacts {
            name: name.to_owned(),
            about: format!("nginx over the plain copy, {sending}"),
            version: tools::version(&program, &["-v"]),
            settings: vec![
                format!("worker_processes 1; {sending} tcp_nopush on; access_log off"),
                "keepalive_requests 1000000".to_owned(),
            ],
            notes: Vec::new(),
        });
        Ok(Self { name, folder, address, process })
    }
}

/// One series of a server.
#[derive(Default)]
struct Series {
    rate: Vec<f64>,
    cpu_per_gib: Vec<f64>,
    cpu_per_request: Vec<f64>,
    p99: Vec<f64>,
}

impl Series {
    fn add(&mut self, harvest: Harvest, cpu: f64, by_bytes: bool) {
        let bytes = harvest.body_bytes as f64;
        let requests = harvest.requests as f64;
        // Of large bodies many are on their way at the end; their bytes were served all the same.
        let counted = if by_bytes { bytes / MIB as f64 } else { requests };
        self.rate.push(counted / harvest.seconds);
        self.cpu_per_gib.push(cpu / (bytes / GIB as f64));
        self.cpu_per_request.push(cpu * 1e6 / requests);
        self.p99.push(harvest.p99_ms);
    }

    fn median(list: &[f64]) -> f64 {
        Spread::of(list).map_or(0.0, |spread| spread.median)
    }
}

/// What is wanted of the GETs.
pub(crate) fn measure(session: &Session) -> Result<(), Trouble> {
    let wanted: Vec<&(&str, Items)> = ALL.iter().filter(|(name, _)| session.wants(name)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    session.attempt("warm GETs", || {
        let served = Served::start(session, &session.wish(&session.origin.endpoint))?;
        session.say("filling the cache of s3");
        let items: Vec<Item> =
            wanted.iter().flat_map(|(_, items)| items(&session.scale).clone()).collect();
        for _ in 0..2 {
            cold::gets(&served.endpoint(), &items, &session.halt)?;
            session.halt.sleep(SETTLE)?;
        }
        let mut servers = Vec::new();
        for (name, sendfile) in [("nginx-sendfile", true), ("nginx-read", false)] {
            session.attempt(name, || {
                servers.push(Nginx::start(session, name, sendfile)?);
                Ok(())
            })?;
        }
        for (name, items) in wanted {
            let items = items(&session.scale);
            session.attempt(&format!("{name} s3"), || {
                compare(session, &served, &servers, name, items)
            })?;
        }
        Ok(())
    })
}

/// Whole heads of unsigned requests.
fn requests(endpoint: &Endpoint, items: &[Item], with_bucket: bool) -> Vec<Vec<u8>> {
    let head = |item: &Item| {
        let path = endpoint.path(&item.key);
        let path = if with_bucket { path } else { path[endpoint.bucket.len() + 1..].to_owned() };
        endpoint.head("GET", &path, "", &[]).into_bytes()
    };
    items.iter().map(head).collect()
}

fn compare(
    session: &Session,
    served: &Served<'_>,
    servers: &[Nginx],
    name: &str,
    items: &[Item],
) -> Result<(), Trouble> {
    let by_bytes = items.first().is_some_and(|item| item.size >= MIB);
    let unit = if by_bytes { "MiB/s" } else { "GETs/s" };
    let (halt, slice) = (&session.halt, session.scale.slice * 2);
    let ours = served.endpoint();
    let mut own = Series::default();
    let mut others: Vec<Series> = servers.iter().map(|_| Series::default()).collect();
    for round in 0..=session.scale.repetitions {
        // The first round opens files and fills buffers, and is not counted.
        let counts = round > 0;
        let slice = if counts { slice } else { slice / 4 };
        let asked = requests(&ours, items, true);
        let before = served.cpu();
        let harvest = storm(ours.address, &asked, CONNECTIONS, slice, halt)?;
        if counts {
            own.add(harvest, served.cpu().since(before), by_bytes);
        }
        for (server, series) in servers.iter().zip(&mut others) {
            let there = Endpoint { address: server.address, ..ours.clone() };
            let asked = requests(&there, items, false);
            let pids = usage::members(&server.folder, &[server.process.pid()]);
            let before = Cpu::of(&pids);
            let harvest = storm(there.address, &asked, CONNECTIONS, slice, halt)?;
            if counts {
                series.add(harvest, Cpu::of(&pids).since(before), by_bytes);
            }
        }
    }
    for (server, series) in servers.iter().zip(&others) {
        let row = Spread::of(&series.rate).map(|rate| Row::new(name, server.name, unit, rate));
        session.record(row.map(|row| finish(row, series)));
    }
    let faster =
        |a: &&Series, b: &&Series| Series::median(&a.rate).total_cmp(&Series::median(&b.rate));
    let cheaper = |a: &&Series, b: &&Series| {
        Series::median(&a.cpu_per_request).total_cmp(&Series::median(&b.cpu_per_request))
    };
    let row = match (others.iter().max_by(faster), others.iter().min_by(cheaper)) {
        (Some(best), Some(cheapest)) => {
            let row = Row::paired(name, "s3", unit, &own.rate, ("nginx", &best.rate));
            let ratio = Spread::ratio(&own.cpu_per_gib, &cheapest.cpu_per_gib);
            row.map(|row| row.with(CPU_RATIO, &ratio.map_or(Vec::new(), |r| r.samples)))
        }
        _ => Spread::of(&own.rate).map(|rate| Row::new(name, "s3", unit, rate)),
    };
    session.record(row.map(|row| finish(row, &own)));
    Ok(())
}

fn finish(row: Row, series: &Series) -> Row {
    row.with(CPU_PER_GIB, &series.cpu_per_gib)
        .with(CPU_PER_REQUEST, &series.cpu_per_request)
        .with(P99, &series.p99)
}

#[cfg(test)]
mod tests {
    use super::super::data::items;
    use super::*;

    #[test]
    fn a_web_server_is_asked_without_the_bucket() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 81));
        let endpoint = Endpoint { address, key: None, bucket: "data".to_owned() };
        let heads = |with| {
            let heads = requests(&endpoint, &items("t", 1, 5), with);
            String::from_utf8(heads[0].clone()).unwrap()
        };
        assert_eq!(heads(true), "GET /data/t/o00000 HTTP/1.1\r\nhost: 127.0.0.1:81\r\n\r\n");
        assert_eq!(heads(false), "GET /t/o00000 HTTP/1.1\r\nhost: 127.0.0.1:81\r\n\r\n");
    }
}
