//! GETs over many connections from one thread: what a busy client costs an HTTP server.
//!
//! Invariant: each connection has one request on its way; a request counts when its body has come whole,
//! bytes count as they come, and anything but status 200 is an error of the run. The same loop asks every server, and its
//! own cost is small beside theirs: one thread, one buffer, no copies kept.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use super::data::Dice;
use super::halt::{During, Halt, Trouble};

/// Larger than what a socket holds, so that one call takes all that is there.
const BUFFER_BYTES: usize = 256 * 1024;
/// Heads are far shorter; a longer one is no answer.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// A server that is silent for so long is broken.
const SILENCE: Duration = Duration::from_secs(20);
/// Enough latencies for a 99th percentile, and bounded.
const MAX_LATENCIES: usize = 1 << 20;

/// What came back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Harvest {
    pub(crate) requests: u64,
    pub(crate) body_bytes: u64,
    pub(crate) seconds: f64,
    /// Milliseconds that 99 of 100 requests took at most.
    pub(crate) p99_ms: f64,
}

struct Connection {
    stream: TcpStream,
    head: Vec<u8>,
    body_left: u64,
    in_body: bool,
    asked: Instant,
}

/// Asks for randomly chosen `requests` (whole heads, unsigned) for about `time`.
pub(crate) fn storm(
    address: SocketAddr,
    requests: &[Vec<u8>],
    connections: usize,
    time: Duration,
    halt: &Halt,
) -> Result<Harvest, Trouble> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).during("epoll")?;
    let mut dice = Dice::new(connections as u64);
    let mut pick = || &requests[dice.below(requests.len() as u64) as usize];
    let mut open = Vec::new();
    for number in 0..connections {
        let stream = TcpStream::connect(address).during(address)?;
        stream.set_nodelay(true).during(address)?;
        let mut connection = Connection {
            stream,
            head: Vec::new(),
            body_left: 0,
            in_body: false,
            asked: Instant::now(),
        };
        connection.ask(pick())?;
        connection.stream.set_nonblocking(true).during(address)?;
        let number = epoll::EventData::new_u64(number as u64);
        epoll::add(&epoll, &connection.stream, number, epoll::EventFlags::IN).during("epoll")?;
        open.push(connection);
    }
    let mut buffer = vec![0_u8; BUFFER_BYTES];
    let mut latencies = Vec::new();
    let mut harvest = Harvest { requests: 0, body_bytes: 0, seconds: 0.0, p99_ms: 0.0 };
    let (begun, mut heard) = (Instant::now(), Instant::now());
    let mut events = Vec::with_capacity(connections);
    // At least one answer for each connection, so that there is something to count.
    while begun.elapsed() < time || harvest.requests < connections as u64 {
        halt.check()?;
        events.clear();
        let wait = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait))
            .during("epoll")?;
        if !events.is_empty() {
            heard = Instant::now();
        } else if heard.elapsed() > SILENCE {
            return Err(Trouble::Failed(format!("{address} is silent")));
        }
        for event in &events {
            let connection = &mut open[event.data.u64() as usize];
            let read = match connection.stream.read(&mut buffer) {
                Ok(0) => return Err(Trouble::Failed(format!("{address} closed a connection"))),
                Ok(read) => read,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    continue;
                }
                Err(error) => return Err(error).during(address),
            };
            let (body_bytes, whole) = connection.take(&buffer[..read])?;
            harvest.body_bytes += body_bytes;
            if whole {
                harvest.requests += 1;
                if latencies.len() < MAX_LATENCIES {
                    latencies.push(connection.asked.elapsed());
                }
                connection.ask(pick())?;
            }
        }
    }
    harvest.seconds = begun.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let p99 = latencies.get((latencies.len() * 99 / 100).min(latencies.len().saturating_sub(1)));
    harvest.p99_ms = p99.map_or(0.0, |latency| latency.as_secs_f64() * 1000.0);
    Ok(harvest)
}

impl Connection {
    /// Sends a request; its few hundred bytes fit the empty buffer of the socket.
    fn ask(&mut self, request: &[u8]) -> Result<(), Trouble> {
        self.head.clear();
        self.in_body = false;
        self.asked = Instant::now();
        self.stream.write_all(request).during("request")
    }

    /// Takes bytes of an answer: how many are of its body, and whether that is whole now.
    fn take(&mut self, bytes: &[u8]) -> Result<(u64, bool), Trouble> {
        let mut body = bytes.len() as u64;
        if !self.in_body {
            let had = self.head.len();
            self.head.extend_from_slice(&bytes[..bytes.len().min(MAX_HEAD_BYTES)]);
            let from = had.saturating_sub(3);
            let end = self.head[from..].windows(4).position(|w| w == b"\r\n\r\n");
            let Some(end) = end.map(|at| from + at + 4) else {
                if self.head.len() > MAX_HEAD_BYTES {
                    return Err(Trouble::Failed("an endless head of an answer".to_owned()));
                }
                return Ok((0, false));
            };
            let (status, length) = parse(&self.head[..end])?;
            if status != 200 {
                return Err(Trouble::Failed(format!("an answer of status {status}")));
            }
            // What the head was counted with came in earlier calls or in this one.
            body = (had + bytes.len() - end) as u64;
            self.head.truncate(end);
            self.in_body = true;
            self.body_left = length;
            if body > length {
                return Err(Trouble::Failed("more bytes than the answer's length".to_owned()));
            }
        }
        self.body_left = self
            .body_left
            .checked_sub(body)
            .ok_or_else(|| "more bytes than the answer's length".to_owned())?;
        Ok((body, self.body_left == 0))
    }
}

/// Status and length of the body.
fn parse(head: &[u8]) -> Result<(u16, u64), Trouble> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    match (status, length) {
        (Some(status), Some(length)) => Ok((status, length)),
        _ => Err(Trouble::Failed("an answer without status or length".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that answers every request with `answer`, in pieces of `piece` bytes.
    fn server(answer: Vec<u8>, piece: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, answer) = (stream.unwrap(), answer.clone());
                std::thread::spawn(move || {
                    let mut request = [0; 1024];
                    while stream.read(&mut request).is_ok_and(|read| read > 0) {
                        for piece in answer.chunks(piece) {
                            if stream.write_all(piece).is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        address
    }

    fn run(answer: &[u8], piece: usize) -> Result<Harvest, Trouble> {
        let requests = [b"GET / HTTP/1.1\r\n\r\n".to_vec()];
        let halt = Halt::new(Duration::from_secs(30));
        storm(server(answer.to_vec(), piece), &requests, 3, Duration::from_millis(50), &halt)
    }

    #[test]
    fn whole_answers_count_however_they_are_cut() {
        let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n".to_vec();
        answer.extend_from_slice(&[7; 5000]);
        for piece in [answer.len(), 1000, 41, 7] {
            let harvest = run(&answer, piece).unwrap();
            assert!(harvest.requests > 0 && harvest.p99_ms > 0.0);
            // What is on its way on three connections at the end has come in part.
            let on_the_way = harvest.body_bytes - harvest.requests * 5000;
            assert!(on_the_way < 3 * 5000, "{on_the_way}");
        }
    }

    #[test]
    fn an_error_is_never_counted_as_speed() {
        let missing = run(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", 100);
        assert_eq!(missing.unwrap_err(), Trouble::Failed("an answer of status 404".to_owned()));
        let long = run(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab", 100);
        assert!(long.unwrap_err().to_string().contains("more bytes"));
    }
}
