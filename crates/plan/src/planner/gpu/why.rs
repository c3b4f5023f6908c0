//! Why a plan with a GPU is as it is, in sentences.

use super::{Planner, Tier};
use crate::number::total;
use crate::plan::{Mode, Plan};
use crate::planner::why::size;

impl Planner<'_> {
    /// Each choice in one sentence.
    pub(super) fn gpu_reasons(&self, plan: &Plan, device: &Tier, host: &Tier) -> Vec<String> {
        let gpu = plan.gpu.as_ref().map_or(0, |gpu| gpu.budget_bytes);
        let weights = size(device.inventory.used_bytes);
        let mut why = vec![self.n_ctx_why.clone()];
        why.push(match plan.mode {
            Mode::FullResident => format!(
                "full-resident, because all {weights} of weights that the GPU computes with fit \
                 into its {} with the rest",
                size(gpu)
            ),
            Mode::ExpertStreaming => format!(
                "expert-streaming, because {weights} of weights do not fit into {} of GPU memory, \
                 and a token needs only a few experts of each layer",
                size(gpu)
            ),
            Mode::DenseStreaming => format!(
                "dense-streaming, because {weights} of weights do not fit into {} of GPU memory, \
                 and every token needs all of them",
                size(gpu)
            ),
        });
        if self.n_gpus() > 1 {
            why.push(format!("the layers are divided among {} GPUs", self.n_gpus()));
        }
        if plan.mode == Mode::ExpertStreaming {
            why.push(self.expert_reason(plan, device, host));
        }
        if device.allocation.ring_bytes > 0 {
            why.push(matrix_reason(plan, device, host));
        }
        if host.inventory.fixed_bytes > 0 {
            why.push(format!(
                "the input embedding, {}, is in main memory, where tokens are looked up",
                size(host.inventory.fixed_bytes)
            ));
        }
        why.push(match self.request.ubatch_tokens {
            Some(n_ubatch) => format!("the micro-batch of {n_ubatch} tokens was asked for"),
            None if plan.n_ubatch == self.device_ubatch_max(&device.inventory, gpu) => {
                format!("a micro-batch of {} tokens fits, a larger one gains little", plan.n_ubatch)
            }
            None => format!(
                "the micro-batch is {} tokens, because a larger one takes {} that weights need",
                plan.n_ubatch,
                if host.n_ubatch < device.n_ubatch { "memory" } else { "GPU memory" }
            ),
        });
        let unmeasured = self.unmeasured_with_gpu(plan);
        if !unmeasured.is_empty() {
            why.push(format!(
                "the expected speed is a guess: {} was not measured",
                unmeasured.join(" and ")
            ));
        }
        why
    }

    fn expert_reason(&self, plan: &Plan, device: &Tier, host: &Tier) -> String {
        let units = total(self.inventory.classes.iter().map(|class| class.n_units()));
        let on_gpu: u64 = device.allocation.slots.iter().sum();
        let in_memory: u64 = host.allocation.slots.iter().sum();
        let rest = if in_memory >= units {
            "memory has all of them".to_owned()
        } else {
            format!("memory has slots for {in_memory}, the others come from storage")
        };
        format!(
            "{on_gpu} of {units} experts have a slot in GPU memory at a time, {:.0}% of {}, and \
             {:.0}% of lookups are assumed to hit one; what a prompt needs beyond them passes through \
             {} more; {rest}",
            100.0 * on_gpu as f64 / units.max(1) as f64,
            size(self.inventory.expert_bytes()),
            100.0 * plan.speed.assumed_hit_rate.unwrap_or(1.0),
            device.transit_slots,
        )
    }

    fn unmeasured_with_gpu(&self, plan: &Plan) -> Vec<&'static str> {
        let gpu = self.machine.gpu.as_ref();
        let reads = plan.speed.read_bytes_per_token > 0;
        let copies = plan.speed.copied_bytes_per_token > 0;
        let drive = self.machine.storage_bytes_per_s(1, 1).is_none();
        let computes = gpu.is_none_or(|gpu| !gpu.is_compute_measured());
        let link = gpu.is_none_or(|gpu| gpu.host_to_device.is_empty());
        [
            (reads && drive, "the drive"),
            (computes, "the GPU's speed of computing"),
            (copies && link, "the speed of copies to the GPU"),
        ]
        .into_iter()
        .filter_map(|(is_missing, what)| is_missing.then_some(what))
        .collect()
    }
}

fn matrix_reason(plan: &Plan, device: &Tier, host: &Tier) -> String {
    let streamed = device.allocation.streamed_dense_bytes(&device.inventory);
    let n_streamed = host.inventory.dense.len();
    let stored = host.allocation.streamed_dense_bytes(&host.inventory);
    let rest = if stored == 0 {
        "memory has all of them".to_owned()
    } else {
        format!(
            "memory has {} of them, {} come from storage through a ring of {}",
            plan.host_matrices.len(),
            size(stored),
            size(plan.ring_bytes)
        )
    };
    format!(
        "{n_streamed} matrices of {} stream through a ring of {} in GPU memory for every token; \
         {rest}",
        size(streamed),
        size(device.allocation.ring_bytes)
    )
}
