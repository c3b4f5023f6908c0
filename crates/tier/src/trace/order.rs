//! Which token each record belongs to, told from the order of the records.

use super::Trace;

impl Trace {
    /// Per record the token that it belongs to, from 0.
    ///
    /// The field in the file counts the tokens of each layer alone, and a layer may see fewer tokens
    /// than others: llama.cpp's last layer computes only the rows whose output is wanted. A pass
    /// routes all its tokens in one layer, then all of them in the next one; a layer that sees fewer
    /// tokens sees the last ones.
    pub(crate) fn tokens(&self) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(self.heads.len());
        let mut pass_start = 0;
        let mut rest = self.heads.as_slice();
        while !rest.is_empty() {
            let (pass, later) = rest.split_at(pass_len(rest));
            let groups = || pass.chunk_by(|a, b| a.1 == b.1).map(<[_]>::len);
            let longest = groups().max().unwrap_or(0);
            for len in groups() {
                let first = pass_start + longest - len;
                // A trace in memory has fewer records than u32 can count; if not, times stand still.
                let saturated = |token| u32::try_from(token).unwrap_or(u32::MAX);
                tokens.extend((first..first + len).map(saturated));
            }
            pass_start += longest;
            rest = later;
        }
        tokens
    }

    /// The records token by token, and within a token layer by layer, as a model without batches
    /// would have made them: `(token, layer, experts)`.
    pub(crate) fn by_token(&self) -> Vec<(u32, u32, &[u16])> {
        let mut records: Vec<(u32, u32, &[u16])> = self
            .records()
            .zip(self.tokens())
            .map(|(record, token)| (token, record.layer, record.experts))
            .collect();
        records.sort_by_key(|&(token, layer, _)| (token, layer));
        records
    }
}

/// How many records the first pass has: layers rise in it.
fn pass_len(heads: &[(u32, u32)]) -> usize {
    let falls = heads.windows(2).position(|pair| pair[1].1 < pair[0].1);
    falls.map_or(heads.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use crate::{Trace, TraceRecord, TraceShape};

    #[test]
    fn a_prompt_then_single_tokens() {
        let shape = TraceShape { n_layers: 3, n_experts: 4, top_k: 1 };
        let mut trace = Trace::new(shape).expect("a shape that fits");
        // A prompt of three tokens of which the last layer sees one; then two tokens. The file's
        // count of the last layer lags behind.
        let layers = [0, 0, 0, 1, 1, 1, 2, 0, 1, 2, 0, 1, 2];
        let mut seen = [0; 3];
        for layer in layers {
            let token = seen[layer as usize];
            seen[layer as usize] += 1;
            trace.push(TraceRecord { token, layer, experts: &[0] }).expect("it fits");
        }
        assert_eq!(trace.tokens(), [0, 1, 2, 0, 1, 2, 2, 3, 3, 3, 4, 4, 4]);
        let order: Vec<_> = trace.by_token().iter().map(|&(t, l, _)| (t, l)).collect();
        let expected =
            [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)];
        assert_eq!(order[..10], expected);
    }

    #[test]
    fn one_layer_is_one_long_pass() {
        let shape = TraceShape { n_layers: 1, n_experts: 4, top_k: 1 };
        let mut trace = Trace::new(shape).expect("a shape that fits");
        for token in 0..5 {
            trace.push(TraceRecord { token, layer: 0, experts: &[1] }).expect("it fits");
        }
        assert_eq!(trace.tokens(), [0, 1, 2, 3, 4]);
    }
}
