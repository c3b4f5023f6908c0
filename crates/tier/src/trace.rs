//! Traces of routing decisions: which experts each token chose in each layer.
//!
//! All numbers are little-endian:
//!
//! ```text
//! offset  size  field
//!      0     8  magic "HYPTRACE"
//!      8     4  version, 1
//!     12     4  n_layers: layers that have experts, 1 to 65,535
//!     16     4  n_experts: experts of each layer, 1 to 65,536
//!     20     4  top_k: experts per token and layer, 1 to 1,024
//!     24     4  CRC-32 (IEEE 802.3) of the 24 bytes before
//!     28        blocks, the last one of which has no records
//!
//! block:
//!      0     4  n_records, 0 to 4,096
//!      4     n  records, each 6 + 2 * top_k bytes:
//!                 0     4  token: position of the token in its sequence
//!                 4     2  layer: index among the layers that have experts, below n_layers
//!                 6  2*k   experts, each below n_experts, in the router's order
//!    4+n     4  CRC-32 of n_records and the records
//! ```
//!
//! Records stand in the order in which the routers ran. A block is checked before a record of it is
//! handed out, so a trace that was cut off is read up to its last whole block.

mod order;
mod summary;

use std::fmt;
use std::io::{self, Read, Write};

pub use summary::{LayerSummary, TraceSummary};

use crc32fast::Hasher;
use thiserror::Error;

const MAGIC: [u8; 8] = *b"HYPTRACE";
const VERSION: u32 = 1;
const BLOCK_RECORDS_MAX: u32 = 4096;
const MAX_LAYERS: u32 = 65_535;
const MAX_EXPERTS: u32 = 65_536;
/// Most experts per token and layer that a trace can hold.
pub const MAX_TOP_K: u32 = 1024;

/// What a trace is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceShape {
    /// Layers that have experts, 1 to 65,535.
    pub n_layers: u32,
    /// Experts of each layer, 1 to 65,536.
    pub n_experts: u32,
    /// Experts per token and layer, 1 to [`MAX_TOP_K`].
    pub top_k: u32,
}

impl fmt::Display for TraceShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { n_layers, n_experts, top_k } = self;
        write!(f, "{n_layers} layers of {n_experts} experts, {top_k} per token")
    }
}

/// One decision: the experts of one token in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceRecord<'a> {
    /// Position of the token in its sequence.
    pub token: u32,
    /// Index among the layers that have experts.
    pub layer: u32,
    /// `top_k` experts.
    pub experts: &'a [u16],
}

/// Why a trace can't be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The reader or writer failed.
    #[error("the trace can't be read or written: {0}")]
    Io(#[from] io::Error),
    /// It does not begin with the magic.
    #[error("this is no routing trace: choose a file written by a traced run")]
    NotATrace,
    /// Written by another version.
    #[error(
        "the trace has version {found}, but only version {VERSION} can be read: record it again"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// A shape outside the limits of the format.
    #[error("no trace can hold {0}")]
    Shape(TraceShape),
    /// A checksum or a field of a block is wrong.
    #[error("the trace is damaged after record {records}: record it again")]
    Damaged {
        /// Records that were read and are right.
        records: u64,
    },
    /// It ends before its closing block.
    #[error("the trace was cut off after record {records}: record it again")]
    CutOff {
        /// Records that were read and are right.
        records: u64,
    },
    /// A record given to the writer does not fit the trace's shape.
    #[error("a record of layer {layer} with {experts} experts does not fit a trace of {shape}")]
    Record {
        /// Its layer.
        layer: u32,
        /// How many experts it has.
        experts: usize,
        /// The trace's shape.
        shape: TraceShape,
    },
}

impl TraceShape {
    fn check(self) -> Result<Self, TraceError> {
        let fits = (1..=MAX_LAYERS).contains(&self.n_layers)
            && (1..=MAX_EXPERTS).contains(&self.n_experts)
            && (1..=MAX_TOP_K).contains(&self.top_k);
        if fits { Ok(self) } else { Err(TraceError::Shape(self)) }
    }
}

/// Writes a trace. It must be [`finish`](Self::finish)ed, else the trace reads as cut off.
#[derive(Debug)]
pub struct TraceWriter<W: Write> {
    out: W,
    shape: TraceShape,
    block: Vec<u8>,
    n_records: u32,
}

impl<W: Write> TraceWriter<W> {
    /// Begins a trace of this shape. `out` is written in blocks of up to 4,096 records.
    ///
    /// # Errors
    /// [`TraceError::Shape`] if the format can't hold it, [`TraceError::Io`].
    pub fn new(mut out: W, shape: TraceShape) -> Result<Self, TraceError> {
        shape.check()?;
        let mut header = Vec::with_capacity(28);
        header.extend(MAGIC);
        for field in [VERSION, shape.n_layers, shape.n_experts, shape.top_k] {
            header.extend(field.to_le_bytes());
        }
        header.extend(crc32fast::hash(&header).to_le_bytes());
        out.write_all(&header)?;
        Ok(Self { out, shape, block: Vec::new(), n_records: 0 })
    }

    /// Appends the decision of one token in one layer: exactly `top_k` experts.
    ///
    /// # Errors
    /// [`TraceError::Record`] if it does not fit the shape (the trace is as before),
    /// [`TraceError::Io`].
    pub fn record(&mut self, token: u32, layer: u32, experts: &[u32]) -> Result<(), TraceError> {
        let shape = self.shape;
        let misfit = || TraceError::Record { layer, experts: experts.len(), shape };
        let known = experts.iter().all(|&expert| expert < shape.n_experts);
        if layer >= shape.n_layers || experts.len() != shape.top_k as usize || !known {
            return Err(misfit());
        }
        self.block.extend(token.to_le_bytes());
        self.block.extend(u16::try_from(layer).map_err(|_| misfit())?.to_le_bytes());
        for &expert in experts {
            self.block.extend(u16::try_from(expert).map_err(|_| misfit())?.to_le_bytes());
        }
        self.n_records += 1;
        if self.n_records == BLOCK_RECORDS_MAX { self.write_block() } else { Ok(()) }
    }

    /// Writes what is left and the closing block, and flushes; returns the writer that was given.
    ///
    /// # Errors
    /// [`TraceError::Io`].
    pub fn finish(mut self) -> Result<W, TraceError> {
        if self.n_records > 0 {
            self.write_block()?;
        }
        self.write_block()?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn write_block(&mut self) -> Result<(), TraceError> {
        let count = self.n_records.to_le_bytes();
        let mut hasher = Hasher::new();
        hasher.update(&count);
        hasher.update(&self.block);
        self.out.write_all(&count)?;
        self.out.write_all(&self.block)?;
        self.out.write_all(&hasher.finalize().to_le_bytes())?;
        self.block.clear();
        self.n_records = 0;
        Ok(())
    }
}

/// Reads a trace record by record, holding one block at a time.
#[derive(Debug)]
pub struct TraceReader<R: Read> {
    input: R,
    shape: TraceShape,
    block: Vec<u8>,
    block_at: usize,
    experts: Vec<u16>,
    records: u64,
    ended: bool,
}

impl<R: Read> TraceReader<R> {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// [`TraceError`] if this is no trace of this version.
    pub fn new(mut input: R) -> Result<Self, TraceError> {
        let mut magic = [0; 8];
        input.read_exact(&mut magic).map_err(|error| at_end(error, TraceError::NotATrace))?;
        if magic != MAGIC {
            return Err(TraceError::NotATrace);
        }
        let mut fields = [0_u32; 5];
        for field in &mut fields {
            *field = read_u32(&mut input)
                .map_err(|error| at_end(error, TraceError::CutOff { records: 0 }))?;
        }
        let [version, n_layers, n_experts, top_k, checksum] = fields;
        if version != VERSION {
            return Err(TraceError::Version { found: version });
        }
        let mut hasher = Hasher::new();
        hasher.update(&MAGIC);
        for field in [version, n_layers, n_experts, top_k] {
            hasher.update(&field.to_le_bytes());
        }
        if hasher.finalize() != checksum {
            return Err(TraceError::Damaged { records: 0 });
        }
        let shape = TraceShape { n_layers, n_experts, top_k }.check()?;
        Ok(Self {
            input,
            shape,
            block: Vec::new(),
            block_at: 0,
            experts: Vec::with_capacity(top_k as usize),
            records: 0,
            ended: false,
        })
    }

    /// What the trace is of.
    pub fn shape(&self) -> TraceShape {
        self.shape
    }

    /// The next record; `None` after the last one. After an error, the same error's kind again or
    /// `None`: nothing more is read.
    ///
    /// # Errors
    /// [`TraceError::Damaged`], [`TraceError::CutOff`] or [`TraceError::Io`].
    pub fn next_record(&mut self) -> Result<Option<TraceRecord<'_>>, TraceError> {
        if self.block_at == self.block.len() && !self.ended {
            // Stays so if reading fails: what follows a bad block can't be trusted.
            self.ended = true;
            self.ended = !self.read_block()?;
        }
        let damaged = TraceError::Damaged { records: self.records };
        let record_len = self.record_len();
        let Some(record) = self.block.get(self.block_at..self.block_at + record_len) else {
            return Ok(None);
        };
        let Some((token, rest)) = record.split_first_chunk::<4>() else { return Err(damaged) };
        let Some((layer, rest)) = rest.split_first_chunk::<2>() else { return Err(damaged) };
        let layer = u32::from(u16::from_le_bytes(*layer));
        self.experts.clear();
        let (experts, _) = rest.as_chunks::<2>();
        self.experts.extend(experts.iter().map(|&bytes| u16::from_le_bytes(bytes)));
        let known = self.experts.iter().all(|&expert| u32::from(expert) < self.shape.n_experts);
        if layer >= self.shape.n_layers || !known {
            self.ended = true;
            self.block.clear();
            self.block_at = 0;
            return Err(damaged);
        }
        self.block_at += record_len;
        self.records += 1;
        Ok(Some(TraceRecord { token: u32::from_le_bytes(*token), layer, experts: &self.experts }))
    }

    /// Reads the next block; `false` if it is the closing one.
    fn read_block(&mut self) -> Result<bool, TraceError> {
        let records = self.records;
        let cut_off = |error| at_end(error, TraceError::CutOff { records });
        self.block.clear();
        self.block_at = 0;
        let count = read_u32(&mut self.input).map_err(cut_off)?;
        if count > BLOCK_RECORDS_MAX {
            return Err(TraceError::Damaged { records });
        }
        // At most 4,096 records of 2,054 bytes.
        let mut block = vec![0; count as usize * self.record_len()];
        self.input.read_exact(&mut block).map_err(cut_off)?;
        let checksum = read_u32(&mut self.input).map_err(cut_off)?;
        let mut hasher = Hasher::new();
        hasher.update(&count.to_le_bytes());
        hasher.update(&block);
        if hasher.finalize() != checksum {
            return Err(TraceError::Damaged { records });
        }
        self.block = block;
        Ok(count > 0)
    }

    fn record_len(&self) -> usize {
        6 + 2 * self.shape.top_k as usize
    }
}

fn read_u32(input: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// `meaning` if the input ended too early, else the error itself.
fn at_end(error: io::Error, meaning: TraceError) -> TraceError {
    if error.kind() == io::ErrorKind::UnexpectedEof { meaning } else { TraceError::Io(error) }
}

/// A whole trace in memory, for simulations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    shape: TraceShape,
    /// Token and layer of each record.
    heads: Vec<(u32, u32)>,
    /// The experts of all records, one after the other.
    experts: Vec<u16>,
}

impl Trace {
    /// Reads a trace up to its end.
    ///
    /// # Errors
    /// [`TraceError`]; a trace that was cut off is refused as a whole.
    pub fn read<R: Read>(input: R) -> Result<Self, TraceError> {
        let mut reader = TraceReader::new(input)?;
        let mut trace = Self::new(reader.shape())?;
        while let Some(record) = reader.next_record()? {
            trace.heads.push((record.token, record.layer));
            trace.experts.extend(record.experts);
        }
        Ok(trace)
    }

    /// A trace without records.
    ///
    /// # Errors
    /// [`TraceError::Shape`] if the format can't hold it.
    pub fn new(shape: TraceShape) -> Result<Self, TraceError> {
        Ok(Self { shape: shape.check()?, heads: Vec::new(), experts: Vec::new() })
    }

    /// Appends a record.
    ///
    /// # Errors
    /// [`TraceError::Record`] if it does not fit the shape.
    pub fn push(&mut self, record: TraceRecord<'_>) -> Result<(), TraceError> {
        let TraceRecord { token, layer, experts } = record;
        let known = experts.iter().all(|&expert| u32::from(expert) < self.shape.n_experts);
        if layer >= self.shape.n_layers || experts.len() != self.shape.top_k as usize || !known {
            let (experts, shape) = (experts.len(), self.shape);
            return Err(TraceError::Record { layer, experts, shape });
        }
        self.heads.push((token, layer));
        self.experts.extend(experts);
        Ok(())
    }

    /// What the trace is of.
    pub fn shape(&self) -> TraceShape {
        self.shape
    }

    /// The records in order.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = TraceRecord<'_>> {
        let experts = self.experts.chunks_exact(self.shape.top_k as usize);
        let records = self.heads.iter().zip(experts);
        records.map(|(&(token, layer), experts)| TraceRecord { token, layer, experts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: TraceShape = TraceShape { n_layers: 3, n_experts: 300, top_k: 2 };

    fn sample(n_records: u32) -> (Trace, Vec<u8>) {
        let mut trace = Trace::new(SHAPE).expect("a shape that fits");
        let mut writer = TraceWriter::new(Vec::new(), SHAPE).expect("a shape that fits");
        for index in 0..n_records {
            let (token, layer) = (index / 3, index % 3);
            let experts = [index % 300, (index + 7) % 300];
            writer.record(token, layer, &experts).expect("a record that fits");
            let experts = experts.map(|expert| u16::try_from(expert).expect("below 300"));
            trace.push(TraceRecord { token, layer, experts: &experts }).expect("one that fits");
        }
        (trace, writer.finish().expect("a vector takes everything"))
    }

    #[test]
    fn round_trip() {
        for n_records in [0, 1, 4095, 4096, 4097, 9000] {
            let (trace, bytes) = sample(n_records);
            assert_eq!(Trace::read(bytes.as_slice()).expect("a whole trace"), trace);
        }
    }

    /// The format as drawn: what version 1 wrote must be read for ever.
    #[test]
    fn version_1_fixture() {
        let mut fixture = b"HYPTRACE\x01\0\0\0\x03\0\0\0\x2c\x01\0\0\x02\0\0\0".to_vec();
        fixture.extend(crc32fast::hash(&fixture).to_le_bytes());
        let block = b"\x01\0\0\0\x05\0\0\0\x02\0\x2b\x01\x00\x01";
        fixture.extend(block);
        fixture.extend(crc32fast::hash(block).to_le_bytes());
        fixture.extend(b"\0\0\0\0\x1c\xdf\x44\x21");
        let mut trace = Trace::new(SHAPE).expect("a shape that fits");
        trace.push(TraceRecord { token: 5, layer: 2, experts: &[299, 256] }).expect("it fits");
        assert_eq!(Trace::read(fixture.as_slice()).expect("a whole trace"), trace);
        let mut writer = TraceWriter::new(Vec::new(), SHAPE).expect("a shape that fits");
        writer.record(5, 2, &[299, 256]).expect("it fits");
        assert_eq!(writer.finish().expect("a vector takes everything"), fixture);
    }

    /// Any cut and any flipped bit is noticed, and never invents a record.
    #[test]
    fn damage_is_noticed() {
        let (_, bytes) = sample(5);
        for len in 0..bytes.len() {
            assert!(Trace::read(&bytes[..len]).is_err(), "cut at {len}");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(Trace::read(damaged.as_slice()).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_cut_trace_is_read_up_to_its_last_whole_block() {
        let (_, bytes) = sample(4100);
        let mut reader = TraceReader::new(&bytes[..bytes.len() - 10]).expect("a header");
        let mut records = 0;
        let error = loop {
            match reader.next_record() {
                Ok(Some(_)) => records += 1,
                Ok(None) => panic!("the cut was not noticed"),
                Err(error) => break error,
            }
        };
        assert_eq!(records, 4096);
        assert!(matches!(error, TraceError::CutOff { records: 4096 }), "{error}");
        assert!(matches!(reader.next_record(), Ok(None)));
    }

    #[test]
    fn misfits_are_refused() {
        let shape = TraceShape { top_k: 0, ..SHAPE };
        assert!(matches!(TraceWriter::new(Vec::new(), shape), Err(TraceError::Shape(_))));
        let mut writer = TraceWriter::new(Vec::new(), SHAPE).expect("a shape that fits");
        for (layer, experts) in [(3, [0, 1].as_slice()), (0, &[0]), (0, &[0, 300])] {
            let result = writer.record(0, layer, experts);
            assert!(matches!(result, Err(TraceError::Record { .. })), "{layer} {experts:?}");
        }
        assert!(matches!(Trace::read(&b"GGUF\x03\0\0\0"[..]), Err(TraceError::NotATrace)));
    }
}
