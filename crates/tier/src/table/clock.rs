//! Time without a clock.

/// Time in tokens, told from the order in which layers are routed: a batch routes all its tokens in
/// one layer, then all of them in the next one. Within a token a later layer is a little later. A
/// layer may see fewer tokens than others (llama.cpp's last layer computes only the rows whose
/// output is wanted), so all layers start a pass at the same time.
#[derive(Debug, Default)]
pub(super) struct Clock {
    pass_start: u64,
    layer: u32,
    tokens_of_layer: u64,
    pub(super) latest: u64,
}

impl Clock {
    pub(super) fn starting_at(now: u64) -> Self {
        Self { pass_start: now, latest: now, ..Self::default() }
    }

    pub(super) fn advance(&mut self, layer: u32, n_layers: usize) -> f64 {
        if layer != self.layer {
            if layer < self.layer {
                self.pass_start = self.latest;
            }
            self.layer = layer;
            self.tokens_of_layer = 0;
        }
        self.tokens_of_layer += 1;
        let token = self.pass_start + self.tokens_of_layer;
        self.latest = self.latest.max(token);
        token as f64 + f64::from(layer) / n_layers as f64
    }
}
