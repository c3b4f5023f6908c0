//! One file: from where an earlier download ended to its checksum.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hypura_gguf::output::partial_path;
use sha2::{Digest as _, Sha256};
use ureq::Body;
use ureq::http::{HeaderMap, Response};

use super::Progress;
use super::choose::RemoteFile;
use super::http::{Failure, Http};
use crate::blobs::Digest;
use crate::disk::{Opened, Partial, read_small};
use crate::error::DiskError;
use crate::manifest::Blob;
use crate::pull::error::PullError;

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 256 << 10;
/// A try that came so many bytes further than all before was no failure: the count of retries begins
/// again.
const HEADWAY_BYTES: u64 = 4 << 20;
/// How long after one report of progress the next may come.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// How often a file is looked at that somebody else downloads.
const BUSY_WAIT: Duration = Duration::from_millis(200);
/// Most bytes of an entity tag that is kept.
const ETAG_BYTES_MAX: u64 = 256;
/// What a GGUF file begins with.
const MAGIC: &[u8] = b"GGUF";

/// Brings a file of a repository to a path, or waits for who is bringing it.
pub(super) fn download(
    http: &Http<'_>,
    url: &str,
    file: &RemoteFile,
    path: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), PullError> {
    let blob = &file.blob;
    let partial = loop {
        if http.is_cancelled() {
            return Err(PullError::Cancelled);
        }
        match Partial::try_open(path)? {
            Opened::Ours(partial) => break partial,
            Opened::Done => {
                progress(Progress::bytes(&blob.sha256, blob.bytes, blob.bytes));
                return Ok(());
            }
            Opened::Busy => {
                let here = partial_path(path).metadata().map_or(0, |meta| meta.len());
                progress(Progress::bytes(&blob.sha256, blob.bytes, here));
                http.sleep(BUSY_WAIT)?;
            }
        }
    };
    let etag = EtagFile::of(path);
    let reporter = Reporter { blob, progress, last: None };
    let mut download = Download {
        http,
        url,
        blob,
        partial,
        etag,
        hasher: Sha256::new(),
        here: 0,
        is_pieced: false,
        reporter,
    };
    download.go_on()?;
    download.fetch_all()?;
    let Download { partial, etag, .. } = download;
    partial.publish()?;
    etag.remove();
    Ok(())
}

/// A file on its way.
struct Download<'a> {
    http: &'a Http<'a>,
    url: &'a str,
    blob: &'a Blob,
    partial: Partial,
    etag: EtagFile,
    /// Has seen all bytes that are here.
    hasher: Sha256,
    /// Bytes that are here.
    here: u64,
    /// Whether they are of more than one answer.
    is_pieced: bool,
    reporter: Reporter<'a>,
}

impl Download<'_> {
    /// Takes up what an earlier download left.
    fn go_on(&mut self) -> Result<(), PullError> {
        let disk = DiskError::at(self.partial.path());
        let len = self.partial.file.metadata().map_err(disk)?.len();
        if len > self.blob.bytes {
            return self.start_over();
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            if self.http.is_cancelled() {
                return Err(PullError::Cancelled);
            }
            let disk = DiskError::at(self.partial.path());
            let count = self.partial.file.read(&mut chunk).map_err(disk)?;
            let Some(read) = chunk.get(..count).filter(|read| !read.is_empty()) else {
                self.is_pieced = self.here > 0;
                return Ok(());
            };
            self.hasher.update(read);
            self.here += read.len() as u64;
            self.reporter.report(self.here);
        }
    }

    fn start_over(&mut self) -> Result<(), PullError> {
        let file = &mut self.partial.file;
        let emptied = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
        emptied.map_err(DiskError::at(self.partial.path()))?;
        self.etag.remove();
        (self.hasher, self.here, self.is_pieced) = (Sha256::new(), 0, false);
        Ok(())
    }

    /// Fetches what is missing until the whole has the right checksum. Pieces may not fit, so then
    /// the whole is fetched again, once.
    fn fetch_all(&mut self) -> Result<(), PullError> {
        let mut is_second = false;
        loop {
            self.fetch_rest()?;
            (self.reporter.progress)(Progress::step("verifying sha256 digest"));
            let found = Digest::finish(std::mem::take(&mut self.hasher));
            if found == self.blob.sha256 {
                return Ok(());
            }
            let is_hopeless = is_second || !self.is_pieced;
            self.start_over()?;
            if is_hopeless {
                let (url, expected) = (self.url.to_owned(), self.blob.sha256.clone());
                return Err(PullError::WrongDigest { url, expected, found });
            }
            is_second = true;
        }
    }

    fn fetch_rest(&mut self) -> Result<(), PullError> {
        let mut patience = self.http.patience();
        let mut furthest = self.here;
        while self.here < self.blob.bytes {
            match self.fetch() {
                Ok(()) => {}
                Err(failure) => {
                    if self.here >= furthest.saturating_add(HEADWAY_BYTES) {
                        patience = self.http.patience();
                    }
                    furthest = furthest.max(self.here);
                    patience.wait(failure)?;
                }
            }
        }
        self.reporter.report_now(self.here);
        Ok(())
    }

    /// One request, and as much of its answer as arrives.
    fn fetch(&mut self) -> Result<(), Failure> {
        let range = format!("bytes={}-", self.here);
        let etag = self.etag.read();
        self.is_pieced = self.here > 0;
        let mut headers = Vec::new();
        if self.here > 0 {
            headers.push(("range", range.as_str()));
            headers.extend(etag.as_deref().map(|etag| ("if-range", etag)));
        }
        let response = self.http.get(self.url, &headers)?;
        match response.status().as_u16() {
            206 => self.check_range(response.headers())?,
            416 => {
                self.start_over()?;
                return Err(Failure::Passing(self.answer("it has no such range"), None));
            }
            // The whole file, because it changed or the server knows no ranges.
            _ => {
                self.start_over()?;
                self.check_length(response.headers())?;
            }
        }
        self.etag.write(response.headers());
        self.take(response)
    }

    fn check_range(&mut self, headers: &HeaderMap) -> Result<(), Failure> {
        let range = headers.get("content-range").and_then(|value| value.to_str().ok());
        match range.and_then(parse_range) {
            Some((start, total)) if start == self.here => match total {
                Some(total) if total != self.blob.bytes => Err(self.wrong_length(total).into()),
                _ => Ok(()),
            },
            _ => {
                self.start_over()?;
                Err(Failure::Passing(self.answer("it is another range"), None))
            }
        }
    }

    fn check_length(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let length = headers.get("content-length").and_then(|value| value.to_str().ok());
        match length.and_then(|length| length.parse().ok()) {
            Some(length) if length != self.blob.bytes => Err(self.wrong_length(length).into()),
            _ => Ok(()),
        }
    }

    fn take(&mut self, response: Response<Body>) -> Result<(), Failure> {
        let mut body = response.into_body().into_reader();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            if self.http.is_cancelled() {
                return Err(PullError::Cancelled.into());
            }
            let count = match body.read(&mut chunk) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.interrupted(&error)),
            };
            let Some(read) = chunk.get(..count).filter(|read| !read.is_empty()) else { break };
            let here = self.here.saturating_add(read.len() as u64);
            if here > self.blob.bytes {
                self.start_over()?;
                return Err(self.wrong_length(here).into());
            }
            if self.here == 0 && !read.starts_with(MAGIC.get(..count.min(4)).unwrap_or(MAGIC)) {
                return Err(PullError::NotGguf { url: self.url.to_owned() }.into());
            }
            self.partial.file.write_all(read).map_err(DiskError::at(self.partial.path()))?;
            self.hasher.update(read);
            self.here = here;
            self.reporter.report(here);
        }
        if self.here < self.blob.bytes {
            return Err(Failure::Passing(self.truncated(), None));
        }
        Ok(())
    }

    /// A connection that ended early: by its end or by a reset, it is the same to the user.
    fn interrupted(&self, error: &io::Error) -> Failure {
        tracing::debug!("{}: {error}", self.url);
        Failure::Passing(self.truncated(), None)
    }

    fn truncated(&self) -> PullError {
        PullError::Truncated {
            url: self.url.to_owned(),
            received_bytes: self.here,
            expected_bytes: self.blob.bytes,
        }
    }

    fn wrong_length(&self, found_bytes: u64) -> PullError {
        let url = self.url.to_owned();
        PullError::WrongLength { url, found_bytes, expected_bytes: self.blob.bytes }
    }

    fn answer(&self, reason: &str) -> PullError {
        PullError::Answer { url: self.url.to_owned(), reason: reason.to_owned() }
    }
}

/// `bytes START-END/TOTAL`, where TOTAL may be `*` (RFC 9110, 14.4).
fn parse_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-')?.0.parse().ok()?;
    match total {
        "*" => Some((start, None)),
        total => Some((start, Some(total.parse().ok()?))),
    }
}

/// Tells how far it is, but not too often.
struct Reporter<'a> {
    blob: &'a Blob,
    progress: &'a mut dyn FnMut(Progress),
    last: Option<Instant>,
}

impl Reporter<'_> {
    fn report(&mut self, here: u64) {
        if self.last.is_none_or(|last| last.elapsed() >= REPORT_EVERY) {
            self.report_now(here);
        }
    }

    fn report_now(&mut self, here: u64) {
        self.last = Some(Instant::now());
        (self.progress)(Progress::bytes(&self.blob.sha256, self.blob.bytes, here));
    }
}

/// The entity tag of what a partial file is the begin of, beside it: a server that has something else
/// by now sends the whole (RFC 9110, 13.1.5). It is a help and no more: the checksum decides.
struct EtagFile {
    path: PathBuf,
}

impl EtagFile {
    fn of(path: &Path) -> Self {
        Self { path: path.with_added_extension("etag") }
    }

    fn read(&self) -> Option<String> {
        let bytes = read_small(&self.path, ETAG_BYTES_MAX).ok()??;
        String::from_utf8(bytes).ok().filter(|etag| is_strong(etag))
    }

    fn write(&self, headers: &HeaderMap) {
        let etag = headers.get("etag").and_then(|value| value.to_str().ok());
        match etag.filter(|etag| is_strong(etag)) {
            Some(etag) => {
                let _ = fs::write(&self.path, etag);
            }
            None => self.remove(),
        }
    }

    fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether a tag may stand in `If-Range`, and fits in a header.
fn is_strong(etag: &str) -> bool {
    etag.len() as u64 <= ETAG_BYTES_MAX
        && etag.len() >= 2
        && etag.starts_with('"')
        && etag.ends_with('"')
        && etag.bytes().all(|byte| matches!(byte, 0x21..=0x7e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_tags_are_read_strictly() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_range("bytes 5-9/*"), Some((5, None)));
        for text in ["", "bytes */10", "bytes 5/10", "bytes x-9/10", "items 5-9/10"] {
            assert_eq!(parse_range(text), None, "{text}");
        }
        assert!(is_strong("\"abc\""));
        for etag in ["", "\"", "abc", "W/\"abc\"", "\"a\nb\"", "\"a b\""] {
            assert!(!is_strong(etag), "{etag:?}");
        }
    }
}
