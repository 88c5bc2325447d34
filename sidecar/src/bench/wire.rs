//! A blocking HTTP/1.1 client of one connection, for one request after the other.
//!
//! Invariant: a body is read to its end or the connection is thrown away. It knows bodies of a stated
//! length and chunked ones, and refuses everything else.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::halt::{During, Trouble};
use super::sign::{self, Key};

/// Longer than any answer of a server that works, also behind a slow link.
const SILENCE: Duration = Duration::from_mins(1);
/// Of a head; more than any server here sends.
const HEAD_BYTES: u64 = 64 * 1024;

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// Where requests go and who signs them.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// `None` sends unsigned requests.
    pub(crate) key: Option<Key>,
    pub(crate) bucket: String,
}

impl Endpoint {
    /// `http://HOST:PORT`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The path of an object, encoded.
    pub(crate) fn path(&self, key: &str) -> String {
        format!("/{}/{}", self.bucket, sign::encode(key, true))
    }

    /// The head of a request, signed where there is a key. `query` is encoded and sorted.
    pub(crate) fn head(
        &self,
        method: &str,
        path: &str,
        query: &str,
        headers: &[(&str, String)],
    ) -> String {
        use std::fmt::Write;
        let host = self.address.to_string();
        let mark = if query.is_empty() { "" } else { "?" };
        let mut head = format!("{method} {path}{mark}{query} HTTP/1.1\r\nhost: {host}\r\n");
        let signed = self
            .key
            .as_ref()
            .map(|key| sign::headers(key, method, &host, path, query, SystemTime::now()));
        let more = headers.iter().map(|(name, value)| (*name, value.as_str()));
        let signed = signed.iter().flatten().map(|(name, value)| (*name, value.as_str()));
        for (name, value) in more.chain(signed) {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        head.push_str("\r\n");
        head
    }
}

/// A connection.
pub(crate) struct Wire {
    stream: BufReader<Box<dyn Stream>>,
    host: String,
    /// Where to connect again when the server ends the connection after an answer.
    address: Option<SocketAddr>,
    ended: bool,
}

/// The head of an answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) etag: Option<String>,
    length: Option<u64>,
    chunked: bool,
    closes: bool,
}

impl Wire {
    /// Connects to a server.
    pub(crate) fn to(address: SocketAddr) -> Result<Self, Trouble> {
        let connect = || {
            let stream = TcpStream::connect_timeout(&address, SILENCE)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(SILENCE))?;
            stream.set_write_timeout(Some(SILENCE))?;
            Ok::<_, std::io::Error>(stream)
        };
        let stream: Box<dyn Stream> = Box::new(connect().during(address)?);
        let stream = BufReader::with_capacity(16 * 1024, stream);
        Ok(Self { stream, host: address.to_string(), address: Some(address), ended: false })
    }

    /// Connects to a Unix socket.
    pub(crate) fn to_unix(path: &Path) -> Result<Self, Trouble> {
        let connect = || {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(SILENCE))?;
            Ok::<_, std::io::Error>(stream)
        };
        let stream: Box<dyn Stream> = Box::new(connect().during(path.display())?);
        let stream = BufReader::new(stream);
        Ok(Self { stream, host: "localhost".to_owned(), address: None, ended: false })
    }

    /// GET of a path without a signature, with its body as text.
    pub(crate) fn get_text(&mut self, path: &str) -> Result<(u16, String), Trouble> {
        let head = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.host);
        let answer = self.send(&head, b"")?;
        let text = self.text(&answer, "GET")?;
        Ok((answer.status, text))
    }

    /// Sends a request and reads the head of the answer.
    pub(crate) fn send(&mut self, head: &str, body: &[u8]) -> Result<Answer, Trouble> {
        self.begin(head)?.write_all(body).during("body of a request")?;
        loop {
            let answer = self.answer()?;
            // 100 Continue comes before the answer.
            if answer.status >= 200 {
                return Ok(answer);
            }
        }
    }

    /// Sends a head, over a new connection where the last answer ended the old one.
    fn begin(&mut self, head: &str) -> Result<&mut dyn Stream, Trouble> {
        if self.ended {
            let address = self.address.ok_or_else(|| "the connection has ended".to_owned())?;
            *self = Self::to(address)?;
        }
        let out = self.stream.get_mut();
        out.write_all(head.as_bytes()).during("request")?;
        Ok(out)
    }

    fn answer(&mut self) -> Result<Answer, Trouble> {
        let mut answer = Answer::default();
        let mut lines = (&mut self.stream).take(HEAD_BYTES);
        let mut line = String::new();
        loop {
            line.clear();
            let read = lines.read_line(&mut line).during("answer")?;
            if read == 0 {
                return Err(Trouble::Failed("the server closed the connection".to_owned()));
            }
            let text = line.trim_end();
            if text.is_empty() {
                break;
            }
            if answer.status == 0 {
                let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
                answer.status = status.ok_or_else(|| format!("`{text}` is no HTTP answer"))?;
            } else if let Some((name, value)) = text.split_once(':') {
                let value = value.trim();
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => answer.length = value.parse().ok(),
                    "transfer-encoding" => answer.chunked = value.eq_ignore_ascii_case("chunked"),
                    "connection" => answer.closes = value.eq_ignore_ascii_case("close"),
                    "etag" => answer.etag = Some(value.to_owned()),
                    _ => {}
                }
            }
        }
        self.ended = answer.closes;
        Ok(answer)
    }

    /// Reads a body and throws it away; how long it was.
    pub(crate) fn discard(&mut self, answer: &Answer, buffer: &mut [u8]) -> Result<u64, Trouble> {
        let Some(length) = answer.length else {
            return Err(Trouble::Failed("an answer without a length".to_owned()));
        };
        let mut left = length;
        while left > 0 {
            let most = left.min(buffer.len() as u64) as usize;
            let read = self.stream.read(&mut buffer[..most]).during("body")?;
            if read == 0 {
                return Err(Trouble::Failed(format!("{left} bytes of a body are missing")));
            }
            left -= read as u64;
        }
        Ok(length)
    }

    /// Reads a body as text.
    pub(crate) fn text(&mut self, answer: &Answer, method: &str) -> Result<String, Trouble> {
        let mut body = Vec::new();
        if method == "HEAD" || answer.status == 204 || answer.status == 304 {
            return Ok(String::new());
        }
        if answer.chunked {
            loop {
                let mut line = String::new();
                (&mut self.stream).take(HEAD_BYTES).read_line(&mut line).during("chunk")?;
                let size = line.trim().split(';').next().unwrap_or("");
                let size = u64::from_str_radix(size, 16)
                    .map_err(|_| format!("`{size}` is no length of a chunk"))?;
                let read = (&mut self.stream).take(size).read_to_end(&mut body).during("chunk")?;
                line.clear();
                (&mut self.stream).take(HEAD_BYTES).read_line(&mut line).during("chunk")?;
                if read as u64 != size {
                    return Err(Trouble::Failed("a chunk was cut".to_owned()));
                }
                if size == 0 {
                    break;
                }
            }
        } else {
            let length = answer.length.unwrap_or(0);
            let read = (&mut self.stream).take(length).read_to_end(&mut body).during("body")?;
            if read as u64 != length {
                return Err(Trouble::Failed("a body was cut".to_owned()));
            }
        }
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Puts an object whose bytes are read from `content`.
    pub(crate) fn put(
        &mut self,
        endpoint: &Endpoint,
        key: &str,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<(), Trouble> {
        let path = endpoint.path(key);
        let head = endpoint.head("PUT", &path, "", &[("content-length", size.to_string())]);
        let out = self.begin(&head)?;
        let mut buffer = vec![0; (size as usize).next_multiple_of(8).clamp(8, 1 << 20)];
        loop {
            let read = content.read(&mut buffer).during("content")?;
            if read == 0 {
                break;
            }
            out.write_all(&buffer[..read]).during("body of a PUT")?;
        }
        let answer = self.answer()?;
        let text = self.text(&answer, "PUT")?;
        if answer.status != 200 {
            return Err(Trouble::Failed(format!("PUT {key}: {} {text}", answer.status)));
        }
        Ok(())
    }

    /// One request to an S3 endpoint, with the answer's body as text; an error unless it is a success.
    pub(crate) fn call(
        &mut self,
        endpoint: &Endpoint,
        method: &str,
        path: &str,
        query: &str,
        body: &[u8],
    ) -> Result<(Answer, String), Trouble> {
        let length = [("content-length", body.len().to_string())];
        let headers: &[_] = if matches!(method, "PUT" | "POST") { &length } else { &[] };
        let head = endpoint.head(method, path, query, headers);
        let answer = self.send(&head, body)?;
        let text = self.text(&answer, method)?;
        if !(200..300).contains(&answer.status) {
            let what: String = text.chars().take(300).collect();
            return Err(Trouble::Failed(format!(
                "{method} {path}?{query}: {} {what}",
                answer.status
            )));
        }
        Ok((answer, text))
    }
}
