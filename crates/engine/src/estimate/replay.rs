//! Recorded routing, replayed with the slots of a plan.

use hypura_plan::Plan;
use hypura_tier::{EarlyRouter, Parts, SlotTable, TableSpec, Trace, TraceShape, UnitId};

/// Per pool of the plan: in how many cases of one token in one layer 0, 1, 2 and so on of its
/// experts were missing.
pub(super) type Counts = Vec<Vec<u64>>;

/// What a replay counted of generated tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Replayed {
    /// Of the first tokens of each recording; `None` if there are no others.
    pub(super) first: Option<Counts>,
    /// Of all others, or of all if there are so few.
    pub(super) rest: Counts,
}

/// Replays recordings of the plan's model, each from empty slots, with the table that the engine
/// uses. Prompts take slots as they do in a run, and are not counted. `None` if no recording has a
/// generated token.
pub(super) fn replay(plan: &Plan, traces: &[&Trace], first_tokens: u32) -> Option<Replayed> {
    let most = |pool: &hypura_plan::Pool| vec![0; pool.n_used as usize + 1];
    let none: Counts = plan.pools.iter().map(most).collect();
    let (mut first, mut rest) = (none.clone(), none.clone());
    for trace in traces {
        let mut table = Table::new(plan)?;
        let mut generated = 0;
        for pass in passes(trace) {
            let is_prompt = pass.iter().any(|(_, tokens)| tokens.len() > 1);
            let counts = if generated < first_tokens { &mut first } else { &mut rest };
            for (layer, tokens) in &pass {
                let missing = table.ask(*layer, tokens);
                let pool = plan.expert_layers.get(*layer as usize)?.pool as usize;
                let count = counts.get_mut(pool).and_then(|pool| pool.get_mut(missing));
                if let Some(count) = count.filter(|_| !is_prompt) {
                    *count += 1;
                }
            }
            generated += u32::from(!is_prompt);
        }
    }
    match (first == none, rest == none) {
        (true, true) => None,
        (_, true) => Some(Replayed { first: None, rest: first }),
        (_, false) => Some(Replayed { first: Some(first), rest }),
    }
}

/// A micro-batch: per layer the experts of each of its tokens.
type Pass<'a> = Vec<(u32, Vec<&'a [u16]>)>;

/// The micro-batches of a recording: layers come in their order, each with all tokens. (The last
/// layer of a prompt may have fewer, since only the wanted outputs are computed.)
fn passes(trace: &Trace) -> Vec<Pass<'_>> {
    // With a single layer, micro-batches can't be told apart.
    let is_single = trace.shape().n_layers == 1;
    let mut passes: Vec<Pass<'_>> = Vec::new();
    for record in trace.records() {
        let last = passes.last().and_then(|pass| pass.last()).map(|(layer, _)| *layer);
        let begins = is_single || last.is_none_or(|last| record.layer < last);
        if begins {
            passes.push(Vec::new());
        }
        let Some(pass) = passes.last_mut() else { continue };
        match pass.last_mut() {
            Some((layer, tokens)) if *layer == record.layer => tokens.push(record.experts),
            _ => pass.push((record.layer, vec![record.experts])),
        }
    }
    passes
}

/// The engine's table, with slots but without bytes.
struct Table {
    table: SlotTable,
    /// Says which experts the next token will probably choose.
    early: EarlyRouter,
    outlook: Vec<f64>,
    capacity: Vec<usize>,
    grants: Vec<hypura_tier::Grant>,
}

impl Table {
    /// `None` if the plan contradicts itself.
    fn new(plan: &Plan) -> Option<Table> {
        let layers = &plan.expert_layers;
        let slots: Vec<u32> = plan.pools.iter().map(|pool| pool.slots).collect();
        let capacity =
            layers.iter().map(|layer| slots.get(layer.pool as usize).copied().unwrap_or(0));
        let capacity = capacity.map(|slots| slots as usize).collect();
        let shape = TraceShape {
            n_layers: u32::try_from(layers.len()).ok()?,
            n_experts: layers.iter().map(|layer| layer.n_experts).max()?,
            top_k: layers.iter().map(|layer| layer.n_used).max()?,
        };
        let spec = TableSpec {
            n_experts: shape.n_experts,
            n_used: shape.top_k,
            pool_of_layer: layers.iter().map(|layer| layer.pool).collect(),
            // One part stands for all: they come and go together.
            parts_of_layer: vec![Parts::DOWN; layers.len()],
            slots_of_pool: slots,
        };
        Some(Table {
            table: SlotTable::new(spec).ok()?,
            early: EarlyRouter::new(shape),
            outlook: Vec::new(),
            capacity,
            grants: Vec::new(),
        })
    }

    /// Makes the experts of these tokens resident, in groups if there are more than slots; returns
    /// how many were not.
    fn ask(&mut self, layer: u32, tokens: &[&[u16]]) -> usize {
        let mut all = Vec::new();
        for token in tokens {
            let experts: Vec<u32> = token.iter().map(|&expert| expert.into()).collect();
            self.table.note_routing(layer, &experts);
            all.extend(experts);
        }
        if let Some(last) = tokens.last() {
            let last: Vec<u32> = last.iter().map(|&expert| expert.into()).collect();
            self.early.observe(layer, &last);
            self.early.outlook(layer, &mut self.outlook);
            self.table.set_outlook(layer, &self.outlook);
        }
        all.sort_unstable();
        all.dedup();
        let capacity = self.capacity.get(layer as usize).copied().unwrap_or(0).max(1);
        let mut missing = 0;
        for group in all.chunks(capacity) {
            self.grants.clear();
            if self.table.acquire(layer, group, Parts::ALL, &mut self.grants).is_err() {
                missing += group.len();
                continue;
            }
            for grant in &self.grants {
                if !grant.fill.is_empty() {
                    missing += 1;
                    self.table.filled(UnitId { layer, expert: grant.expert }, grant.fill);
                }
            }
            self.table.release_all();
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use hypura_gguf as gguf;
    use hypura_plan::{Machine, Request, plan};
    use hypura_tier::{TraceRecord, TraceShape};

    use super::*;

    /// A plan of a model with two layers of eight experts, two per token, with `slots` slots.
    fn plan_with(slots: u32) -> Plan {
        let mut metadata = gguf::Metadata::new();
        metadata.insert("general.architecture", "qwen3moe");
        for (key, value) in [
            ("block_count", 2_u32),
            ("context_length", 256),
            ("embedding_length", 64),
            ("attention.head_count", 1),
            ("expert_count", 8),
            ("expert_used_count", 2),
        ] {
            metadata.insert(format!("qwen3moe.{key}"), value);
        }
        let mut writer = gguf::Writer::new(metadata, 32).expect("an alignment that is allowed");
        for layer in 0..2 {
            for (stem, dims) in
                [("ffn_up_exps", [64, 1 << 16, 8]), ("ffn_down_exps", [1 << 16, 64, 8])]
            {
                let name = format!("blk.{layer}.{stem}.weight");
                writer.add_tensor(&name, gguf::GgmlType::Q8_0, &dims).expect("a tensor");
            }
        }
        let model = gguf::Model::from_writer(&writer, std::path::Path::new("model.gguf"));
        let memory_bytes = 1 << 40;
        let weights_memory_bytes = Some(model.weight_bytes() / 2);
        let request = Request { memory_bytes, weights_memory_bytes, ..Request::default() };
        let mut plan = plan(&model, &Machine::default(), &request).expect("a plan");
        assert_eq!((plan.pools.len(), plan.expert_layers.len()), (1, 2));
        plan.pools[0].slots = slots;
        plan
    }

    fn trace(records: &[(u32, u32, [u16; 2])]) -> Trace {
        let shape = TraceShape { n_layers: 2, n_experts: 8, top_k: 2 };
        let mut trace = Trace::new(shape).expect("a shape that fits");
        for (token, layer, experts) in records {
            let (token, layer) = (*token, *layer);
            trace.push(TraceRecord { token, layer, experts }).expect("a record that fits");
        }
        trace
    }

    #[test]
    fn prompts_fill_slots_and_generated_tokens_are_counted() {
        // A prompt of two tokens, of which the last layer computes only one; then three tokens.
        let trace = trace(&[
            (0, 0, [0, 1]),
            (1, 0, [0, 2]),
            (1, 1, [4, 5]),
            (2, 0, [0, 1]), // both there
            (2, 1, [4, 6]), // 6 is not
            (3, 0, [0, 7]), // 7 is not
            (3, 1, [4, 6]),
            (4, 0, [5, 6]), // none
            (4, 1, [4, 5]),
        ]);
        let replayed = replay(&plan_with(16), &[&trace], 1).expect("generated tokens");
        assert_eq!(replayed.first, Some(vec![vec![1, 1, 0]]));
        assert_eq!(replayed.rest, [[2, 1, 1]]);
        // Few tokens: no first ones apart.
        let replayed = replay(&plan_with(16), &[&trace], 32).expect("generated tokens");
        assert_eq!((replayed.first, replayed.rest), (None, vec![vec![3, 2, 1]]));
        // Each recording starts from empty slots.
        let twice = replay(&plan_with(16), &[&trace, &trace], 32).expect("generated tokens");
        assert_eq!(twice.rest, [[6, 4, 2]]);
    }

    #[test]
    fn fewer_slots_than_a_prompt_needs() {
        let prompt = [(0, 0, [0, 1]), (1, 0, [2, 3]), (1, 1, [4, 5])];
        let mut all = prompt.to_vec();
        assert_eq!(replay(&plan_with(2), &[&trace(&all)], 32), None, "nothing was generated");
        // With two slots for both layers nothing stays.
        all.extend([(2, 0, [0, 1]), (2, 1, [4, 5]), (3, 0, [0, 1]), (3, 1, [4, 5])]);
        let replayed = replay(&plan_with(2), &[&trace(&all)], 32).expect("generated tokens");
        assert_eq!(replayed.rest, [[0, 0, 4]]);
    }
}
