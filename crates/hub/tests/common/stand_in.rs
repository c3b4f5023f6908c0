//! A hub on this machine that misbehaves as it is told.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hypura_hub::Digest;

/// What goes wrong with the answer to one request for a file.
#[derive(Debug, Clone)]
pub(crate) enum Mishap {
    /// Another status, with a further header line or none.
    Status(u16, &'static str),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// It is reset after so many bytes.
    Reset(usize),
    /// Nothing more comes after so many bytes.
    Stall(usize),
    /// The whole file, whatever range was asked for.
    IgnoreRange,
    /// A range that was not asked for.
    WrongRange,
    /// Something longer.
    Longer,
    /// Without its length, and cut after so many bytes.
    Unmeasured(usize),
    /// The last byte is another one.
    Corrupt,
    /// Nothing before [`Shared::hold`] is false.
    Hold,
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

/// A file of the repository `org/repo`.
#[derive(Debug, Clone)]
struct Remote {
    content: Vec<u8>,
    /// What the list says.
    sha256: String,
    bytes: u64,
}

#[derive(Default)]
pub(crate) struct Shared {
    files: Mutex<BTreeMap<String, Remote>>,
    pub(crate) requests: Mutex<Vec<Request>>,
    pub(crate) mishaps: Mutex<VecDeque<Mishap>>,
    pub(crate) list_mishaps: Mutex<VecDeque<Mishap>>,
    /// Files of a page of the list; 0: all.
    pub(crate) page_files: Mutex<usize>,
    pub(crate) hold: AtomicBool,
    is_over: AtomicBool,
}

/// The hub.
pub(crate) struct StandIn {
    address: SocketAddr,
    pub(crate) shared: Arc<Shared>,
}

impl StandIn {
    pub(crate) fn new(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { hold: AtomicBool::new(true), ..Shared::default() });
        let hub = Self { address, shared: Arc::clone(&shared) };
        for (path, content) in files {
            hub.list(path, content, Digest::of(content).as_str(), content.len() as u64);
        }
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&shared);
                // A client that goes away is what some tests are about.
                thread::spawn(move || stream.and_then(|stream| answer(&shared, stream)));
            }
        });
        hub
    }

    /// Lists a file, perhaps wrongly.
    pub(crate) fn list(&self, path: &str, content: &[u8], sha256: &str, bytes: u64) {
        let remote = Remote { content: content.to_vec(), sha256: sha256.to_owned(), bytes };
        self.shared.files.lock().unwrap().insert(path.to_owned(), remote);
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn go_wrong(&self, mishaps: &[Mishap]) {
        self.shared.mishaps.lock().unwrap().extend(mishaps.iter().cloned());
    }

    /// The requests for contents so far.
    pub(crate) fn downloads(&self) -> Vec<Request> {
        let requests = self.shared.requests.lock().unwrap();
        requests.iter().filter(|request| request.path.starts_with("/cdn/")).cloned().collect()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.shared.hold.store(false, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn answer(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    let request = read_request(&stream)?;
    shared.requests.lock().unwrap().push(request.clone());
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    if path == "/api/models/org/repo/tree/main" {
        let mishap = shared.list_mishaps.lock().unwrap().pop_front();
        return match mishap {
            Some(Mishap::Status(status, header)) => send_status(&mut stream, status, header),
            _ => send_list(shared, &mut stream, query),
        };
    }
    if let Some(path) = path.strip_prefix("/org/repo/resolve/main/") {
        // Another host, as far as a client can tell.
        let port = stream.local_addr()?.port();
        let location = format!("location: http://localhost:{port}/cdn/{path}");
        return send_status(&mut stream, 302, &location);
    }
    let files = shared.files.lock().unwrap();
    let file = path.strip_prefix("/cdn/").and_then(|path| files.get(path)).cloned();
    drop(files);
    match file {
        Some(file) => send_file(shared, &mut stream, &request, &file.content),
        None => send_status(&mut stream, 404, "x-nothing: here"),
    }
}

fn read_request(stream: &TcpStream) -> io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    Ok(Request { path, headers })
}

fn send_status(stream: &mut TcpStream, status: u16, header: &str) -> io::Result<()> {
    let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
    write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n{header}\r\n")
}

fn send_list(shared: &Shared, stream: &mut TcpStream, query: &str) -> io::Result<()> {
    let files = shared.files.lock().unwrap();
    let page_files = *shared.page_files.lock().unwrap();
    let count = if page_files == 0 { files.len() } else { page_files };
    let cursor = query.split_once("cursor=").map_or(0, |(_, at)| at.parse().unwrap());
    let mut entries = vec![serde_json::json!({"type": "directory", "path": "x.gguf", "size": 0})];
    for (path, file) in files.iter().skip(cursor).take(count) {
        let lfs = serde_json::json!({"oid": file.sha256, "size": file.bytes, "pointerSize": 130});
        entries.push(serde_json::json!({
            "type": "file", "path": path, "size": file.bytes, "oid": "0123", "lfs": lfs
        }));
    }
    let body = serde_json::to_string(&entries).unwrap();
    let mut head =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
    if cursor + count < files.len() {
        let next = cursor + count;
        let url = "https://hub.invalid/api/models/org/repo/tree/main?recursive=1";
        let _ = write!(head, "link: <{url}&cursor={next}>; rel=\"next\"\r\n");
    }
    write!(stream, "{head}\r\n{body}")
}

fn send_file(
    shared: &Shared,
    stream: &mut TcpStream,
    request: &Request,
    content: &[u8],
) -> io::Result<()> {
    let mishap = shared.mishaps.lock().unwrap().pop_front();
    let etag = format!("\"{}\"", Digest::of(content));
    let (mut start, total) = (requested_start(request, &etag), content.len());
    let mut content = content.to_vec();
    let mut send_bytes = usize::MAX;
    let mut is_measured = true;
    match mishap {
        Some(Mishap::Status(status, header)) => return send_status(stream, status, header),
        Some(Mishap::Cut(bytes) | Mishap::Reset(bytes) | Mishap::Stall(bytes)) => {
            send_bytes = bytes
        }
        Some(Mishap::Unmeasured(bytes)) => (send_bytes, is_measured) = (bytes, false),
        Some(Mishap::IgnoreRange) => start = None,
        Some(Mishap::WrongRange) => start = Some(start.unwrap_or(0) + 1),
        Some(Mishap::Longer) => content.push(0),
        Some(Mishap::Corrupt) => *content.last_mut().unwrap() ^= 1,
        Some(Mishap::Hold) => {
            while shared.hold.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(2));
            }
        }
        None => {}
    }
    let body = &content[start.unwrap_or(0)..];
    let mut head = format!("connection: close\r\netag: {etag}\r\n");
    if is_measured {
        let _ = write!(head, "content-length: {}\r\n", body.len());
    }
    match start {
        Some(start) => {
            let range = format!("bytes {start}-{}/{total}", content.len() - 1);
            write!(stream, "HTTP/1.1 206 x\r\n{head}content-range: {range}\r\n\r\n")?;
        }
        None => write!(stream, "HTTP/1.1 200 OK\r\n{head}\r\n")?,
    }
    stream.write_all(&body[..send_bytes.min(body.len())])?;
    match mishap {
        Some(Mishap::Reset(_)) => {
            // What was sent is read before the reset.
            thread::sleep(Duration::from_millis(20));
            rustix::net::sockopt::set_socket_linger(&*stream, Some(Duration::ZERO))?;
        }
        // Until the other side has had enough.
        Some(Mishap::Stall(_)) => drop(stream.read(&mut [0])),
        _ => {}
    }
    Ok(())
}

/// Where the range begins that is asked for and may be given.
fn requested_start(request: &Request, etag: &str) -> Option<usize> {
    let range = request.headers.get("range")?;
    if request.headers.get("if-range").is_some_and(|expected| expected != etag) {
        return None;
    }
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}
