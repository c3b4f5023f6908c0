//! (model, machine, budget) in, [`Plan`] out: which tensor lives in which tier, how large the pools
//! and batches are, what the attention state takes, and how fast it should be.
//!
//! Everything here is a pure function: no I/O, no clock, no ggml. The same input gives the same plan
//! on every machine. Sizes that llama.cpp will allocate are computed by formulas with their source
//! beside them ([`memory`]), and are estimates from above; the engine measures the real ones.
//!
//! How a plan is found:
//!
//! 1. What can't stream (norms, biases, routers, small tensors) is resident in every plan.
//! 2. If all weights, the attention state and the buffers fit, the mode is *full-resident*.
//! 3. Else the budget is divided. A share goes to what a batch needs, which fixes the batch size;
//!    the rest goes to weights, in the order of bytes saved per byte held: tensors that every token
//!    reads, then slots for experts, then the input embedding, of which a token reads one row.
//! 4. The same code with everything streamed and the smallest batch gives the smallest budget.
//!
//! With a GPU that computes there are two budgets. GPU memory is divided as above, and then main
//! memory, among what GPU memory does not hold: what goes to the GPU for a token comes from there if
//! it fits, else from storage.
//!
//! More memory never means more bytes streamed per token: every share grows with the budget, and no
//! faster than it.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod allocate;
mod explain;
mod inventory;
pub mod kv;
mod machine;
pub mod memory;
mod number;
mod plan;
mod planner;
mod request;
mod speed;
mod split;

pub use explain::{BudgetRow, Explanation, PoolRow, RoleRow, Tier, TierBar, explain};
pub use machine::{BandwidthPoint, ComputeRate, GpuRates, Machine};
pub use plan::{
    Breakdown, ExpertLayer, ExpertTensor, GpuPlan, Mode, Part, Placement, Plan, PlanError, Pool,
    PoolPart,
};
pub use planner::plan;
pub use request::{GpuRequest, KvType, Layout, Request};
pub use speed::{
    Forecast, HIT_RATE_CURVE, Limit, Product, Routing, Speed, WeightUse, assumed_hit_rate,
    forecast, weight_uses,
};
pub use split::{Run, split_layers};
