//! One GET over a connection of its own, without a runtime.
//!
//! Invariant: it ends by the time it is given, however slowly the other side sends. It reads at most
//! [`MOST_BYTES`] of an answer.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::config::AdminAddress;

/// Head and reason of an answer; what is longer is no answer to a probe.
const MOST_BYTES: usize = 16 << 10;
/// The least that is given to a system call: a time of 0 would mean for ever.
const LEAST: Duration = Duration::from_millis(1);

trait Stream: Read + Write {
    fn limit(&self, time: Duration) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn limit(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time)).and_then(|()| self.set_write_timeout(Some(time)))
    }
}

impl Stream for UnixStream {
    fn limit(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time)).and_then(|()| self.set_write_timeout(Some(time)))
    }
}

/// Holds when the answer is 200; otherwise says what was answered.
pub(super) fn ok(to: &AdminAddress, path: &str, by: Instant) -> Result<(), String> {
    let (status, body) = get(to, path, by)?;
    match status {
        200 => Ok(()),
        _ if body.is_empty() => Err(format!("{to}{path} answers {status}")),
        _ => Err(format!("{to}{path} answers {status}: {body}")),
    }
}

/// Holds when anything is answered that is HTTP and no failure of the server.
pub(super) fn any(to: &AdminAddress, by: Instant) -> Result<(), String> {
    let (status, _) = get(to, "/", by)?;
    if status < 500 { Ok(()) } else { Err(format!("{to} answers {status}")) }
}

fn get(to: &AdminAddress, path: &str, by: Instant) -> Result<(u16, String), String> {
    let late = || format!("{to} does not answer in time");
    let absent = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => late(),
        _ => format!("nothing listens at {to}: {error}"),
    };
    let (mut stream, host): (Box<dyn Stream>, String) = match to {
        AdminAddress::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, left(by)).map_err(absent)?;
            (Box::new(stream), address.to_string())
        }
        AdminAddress::Unix(socket) => {
            (Box::new(connect_by(socket, by).map_err(absent)?), "localhost".to_owned())
        }
    };
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    let answer = exchange(&mut *stream, request.as_bytes(), by);
    let answer = answer.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => late(),
        _ => format!("{to}: {error}"),
    })?;
    parse(&answer).ok_or_else(|| format!("{to} does not answer HTTP"))
}

/// A connection to a local socket. One that nobody accepts from waits for room in its queue, which
/// is given up in time (EAGAIN).
fn connect_by(path: &Path, by: Instant) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    loop {
        set_socket_timeout(&socket, Timeout::Send, Some(left(by)))?;
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket.into()),
            Err(Errno::INTR) if Instant::now() < by => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn left(by: Instant) -> Duration {
    by.saturating_duration_since(Instant::now()).max(LEAST)
}

fn exchange(stream: &mut dyn Stream, request: &[u8], by: Instant) -> io::Result<Vec<u8>> {
    stream.limit(left(by))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while answer.len() < MOST_BYTES {
        if Instant::now() >= by {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.limit(left(by))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A server that closes with a reset has answered before.
            Err(_) if !answer.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

/// Status and, in one line, the text of an answer.
fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8_lossy(answer);
    let mut words = text.lines().next()?.split(' ');
    words.next().filter(|word| word.starts_with("HTTP/1."))?;
    let status = words.next()?.parse().ok()?;
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Some((status, body.split_whitespace().collect::<Vec<_>>().join(" ")))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// What a server that sends `answer`, byte after byte with a pause, seems like.
    fn against(answer: &'static [u8], pause: Duration, time: Duration) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            _ = stream.read(&mut request);
            for byte in answer {
                std::thread::sleep(pause);
                if stream.write_all(&[*byte]).is_err() {
                    return;
                }
            }
        });
        let found = ok(&AdminAddress::Tcp(address), "/readyz", Instant::now() + time);
        server.join().unwrap();
        found
    }

    #[test]
    fn answers_are_told_apart() {
        let soon = Duration::from_secs(20);
        let now = Duration::ZERO;
        assert_eq!(against(b"HTTP/1.1 200 OK\r\n\r\nready\n", now, soon), Ok(()));
        let not =
            against(b"HTTP/1.1 503 No\r\n\r\nnot ready:\n the disk\n", now, soon).unwrap_err();
        assert!(not.ends_with("/readyz answers 503: not ready: the disk"), "{not}");
        let other = against(b"SSH-2.0-x\r\n", now, soon).unwrap_err();
        assert!(other.ends_with("does not answer HTTP"), "{other}");
    }

    #[test]
    fn a_server_that_drips_is_given_up() {
        let drips = b"HTTP/1.1 200 OK\r\nx: 0123456789012345678901234567890123456789\r\n\r\n";
        let slow = against(drips, Duration::from_millis(20), Duration::from_millis(200));
        assert!(slow.unwrap_err().ends_with("does not answer in time"));
    }

    #[test]
    fn nobody_is_said() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let found = ok(&AdminAddress::Tcp(free), "/livez", Instant::now() + LEAST).unwrap_err();
        assert!(found.starts_with("nothing listens at"), "{found}");
        let socket = AdminAddress::Unix("/no/such/socket".into());
        assert!(any(&socket, Instant::now() + LEAST).is_err());
    }
}
