//! What llama.cpp writes for a sequence, as far as it has to be understood: how many cells each
//! cache of attention wrote, and how long a recurrent state is. Everything else is a reason to leave
//! the state alone: it is then of a kind that was not thought of here.
//!
//! `llama_kv_cache::state_write_meta`, `llama_kv_cache::state_write_data` (`llama-kv-cache.cpp`) and
//! `llama_memory_recurrent::state_write_data` (`llama-memory-recurrent.cpp`).

/// Position, number of sequences, and the sequence.
const CELL_BYTES: usize = 12;
/// The same, with the position in two dimensions and the token (`llama_kv_cell_ext`).
const EXTENDED_CELL_BYTES: usize = 24;
/// More layers than any model has.
const LAYERS_MAX: usize = 1 << 12;

/// Bytes that are taken from the front.
#[derive(Clone, Copy)]
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn skip(&mut self, n: usize) -> Option<()> {
        self.0 = self.0.get(n..)?;
        Some(())
    }

    fn u32(&mut self) -> Option<usize> {
        let (number, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        usize::try_from(u32::from_le_bytes(*number)).ok()
    }

    fn u64(&mut self) -> Option<usize> {
        let (number, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        usize::try_from(u64::from_le_bytes(*number)).ok()
    }
}

/// The number of cells in each of the caches that `body` holds one after another, to its last byte.
/// `None` if it holds anything else. `n_cells` is the number that is expected: with it the size of a
/// cell's description is told from the rows behind it.
pub(super) fn cells_of_caches(body: &[u8], n_cells: usize) -> Option<Vec<usize>> {
    let mut rest = Rest(body);
    let mut all = Vec::new();
    while !rest.0.is_empty() {
        let shapes = [
            (CELL_BYTES, true),
            (CELL_BYTES, false),
            (EXTENDED_CELL_BYTES, true),
            (EXTENDED_CELL_BYTES, false),
        ];
        let is_last_or_cache =
            |rest: &Rest<'_>| rest.0.is_empty() || rest.0.starts_with(&[1, 0, 0, 0]);
        let mut found = shapes.into_iter().filter_map(|(cell_bytes, has_values)| {
            let mut ahead = rest;
            let cells = cache(&mut ahead, cell_bytes, has_values)?;
            (cells <= n_cells && is_last_or_cache(&ahead)).then_some((ahead, cells))
        });
        // A cache that reads to the end is preferred: rows of zeros may look like anything.
        let first = found.next()?;
        let (ahead, cells) = match found.find(|(ahead, _)| ahead.0.is_empty()) {
            Some(whole) if !first.0.0.is_empty() => whole,
            _ => first,
        };
        rest = ahead;
        all.push(cells);
    }
    Some(all)
}

fn cache(rest: &mut Rest<'_>, cell_bytes: usize, has_values: bool) -> Option<usize> {
    if rest.u32()? != 1 {
        return None;
    }
    let cells = rest.u32()?;
    if cells == 0 {
        return Some(0);
    }
    rest.skip(cells.checked_mul(cell_bytes)?)?;
    let is_transposed = match rest.u32()? {
        0 => false,
        1 => true,
        _ => return None,
    };
    let layers = rest.u32()?;
    if layers == 0 || layers > LAYERS_MAX {
        return None;
    }
    // The rotations of K and V.
    rest.skip(8)?;
    for _ in 0..layers {
        rows(rest, cells)?;
    }
    for _ in 0..if has_values { layers } else { 0 } {
        if is_transposed {
            // Type, bytes of an element, elements of a row.
            rest.skip(4)?;
            let (element, width) = (rest.u32()?, rest.u32()?);
            rest.skip(width.checked_mul(element)?.checked_mul(cells)?)?;
        } else {
            rows(rest, cells)?;
        }
    }
    Some(cells)
}

/// Type, bytes of a row, and the rows.
fn rows(rest: &mut Rest<'_>, cells: usize) -> Option<()> {
    rest.skip(4)?;
    let row = rest.u64()?;
    rest.skip(row.checked_mul(cells)?)
}

/// Bytes by which a recurrent state of one cell is longer than `empty`, one without cells.
pub(super) fn recurrent_cell_bytes(empty: &[u8]) -> Option<usize> {
    let mut rest = Rest(empty);
    let (cells, transposed, _layers) = (rest.u32()?, rest.u32()?, rest.u32()?);
    if cells != 0 || transposed != 0 {
        return None;
    }
    // The cell's position, and its number of sequences.
    let mut bytes = 8_usize;
    while !rest.0.is_empty() {
        rest.skip(4)?;
        bytes = bytes.checked_add(rest.u64()?)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(out: &mut Vec<u8>, n: u32) {
        out.extend_from_slice(&n.to_le_bytes());
    }

    fn rows(out: &mut Vec<u8>, cells: u32, row: u64) {
        number(out, 1);
        out.extend_from_slice(&row.to_le_bytes());
        out.resize(out.len() + usize::try_from(row).unwrap() * cells as usize, 0xab);
    }

    /// A cache as llama.cpp writes it.
    fn written(cells: u32, layers: u32, extended: bool, values: bool, transposed: bool) -> Vec<u8> {
        let mut out = Vec::new();
        number(&mut out, 1);
        number(&mut out, cells);
        if cells == 0 {
            return out;
        }
        for position in 0..cells {
            number(&mut out, position);
            number(&mut out, 1);
            if extended {
                out.extend_from_slice(&[0xff; 12]);
            }
            number(&mut out, 1);
        }
        for n in [u32::from(transposed), layers, 0, 0] {
            number(&mut out, n);
        }
        for _ in 0..layers {
            rows(&mut out, cells, 64);
        }
        for _ in 0..if values { layers } else { 0 } {
            if transposed {
                for n in [1, 2, 32] {
                    number(&mut out, n);
                }
                out.resize(out.len() + 2 * 32 * cells as usize, 0xcd);
            } else {
                rows(&mut out, cells, 32);
            }
        }
        out
    }

    #[test]
    fn cells_are_counted_in_every_kind_of_cache() {
        for extended in [false, true] {
            for (values, transposed) in [(true, false), (true, true), (false, false)] {
                let one = written(5, 3, extended, values, transposed);
                assert_eq!(cells_of_caches(&one, 5), Some(vec![5]), "{extended} {values}");
                let two = [one.clone(), written(4, 2, extended, values, transposed)].concat();
                assert_eq!(cells_of_caches(&two, 5), Some(vec![5, 4]), "{extended} {values}");
                let with_empty =
                    [one.clone(), written(0, 2, extended, values, transposed)].concat();
                assert_eq!(cells_of_caches(&with_empty, 5), Some(vec![5, 0]));
                assert_eq!(cells_of_caches(&one[..one.len() - 1], 5), None, "cut off");
                assert_eq!(cells_of_caches(&[one, vec![0]].concat(), 5), None, "too long");
            }
        }
        assert_eq!(cells_of_caches(&[], 5), Some(vec![]));
        assert_eq!(cells_of_caches(&[2, 0, 0, 0, 1, 0, 0, 0], 5), None, "two streams");
    }

    #[test]
    fn a_recurrent_state_is_as_long_as_its_rows() {
        let mut empty = Vec::new();
        for n in [0, 0, 2] {
            number(&mut empty, n);
        }
        for row in [100_u64, 100, 4000, 4000] {
            number(&mut empty, 0);
            empty.extend_from_slice(&row.to_le_bytes());
        }
        assert_eq!(recurrent_cell_bytes(&empty), Some(8 + 8200));
        assert_eq!(recurrent_cell_bytes(&empty[..empty.len() - 3]), None);
    }
}
