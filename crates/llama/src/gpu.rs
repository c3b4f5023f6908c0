//! The GPU that computes.

use std::ffi::{CStr, CString};

use llama_cpp_sys_2 as sys;

use crate::abi::{self, Dev, Reg};
use crate::cpu::cpu;

/// GPUs that a model can be divided among.
pub const DEVICES_MAX: usize = 8;

/// A device that computes in place of the CPU.
#[derive(Debug, Clone)]
pub struct Gpu {
    dev: Dev,
    /// ggml's name of it, such as `CUDA0`.
    pub name: String,
    /// Name of the product.
    pub description: String,
    /// Its memory in bytes.
    pub memory_total_bytes: u64,
    /// What of it is free, in bytes.
    pub memory_free_bytes: u64,
}

// SAFETY: the address of a static object of ggml.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// There is no such GPU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// None at all.
    #[error(
        "there is no GPU that this program can use; it needs a build or a backend for it (README, \
         \"GPUs\") and a driver"
    )]
    None,
    /// None of this name.
    #[error("there is no device {name}; there are: {}", known.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// One cannot be two.
    #[error("the GPU {0} is named twice")]
    Twice(String),
    /// More than [`DEVICES_MAX`].
    #[error("a model can be divided among {DEVICES_MAX} GPUs at most, not {0}")]
    TooMany(usize),
    /// One that computes with main memory has nothing to add to others.
    #[error("{0} computes with main memory and can't be one of several GPUs")]
    Unified(String),
}

/// Which layers each GPU has: runs of layers, in their order. The output matrix counts as one more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    layers: Vec<u32>,
}

impl Split {
    /// By the number of layers of each GPU; the last one's number includes the output matrix.
    #[must_use]
    pub fn new(layers: Vec<u32>) -> Split {
        Split { layers }
    }

    /// The GPU that a layer is on, by its number. Layers beyond the last are on the last GPU.
    #[must_use]
    pub fn device_of_layer(&self, layer: u32) -> usize {
        let ends = self.layers.iter().scan(0, |end, &n| {
            *end += n;
            Some(*end)
        });
        let last = self.layers.len().saturating_sub(1);
        ends.into_iter().position(|end| layer < end).unwrap_or(last)
    }

    /// The GPU that a tensor is on, by its name in the file: what is of no layer is on the last.
    #[must_use]
    pub fn device_of(&self, name: &str) -> usize {
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
        self.device_of_layer(layer.unwrap_or(u32::MAX))
    }

    /// The same as llama.cpp wants it (`tensor_split`; `get_layer_buft_list` in `llama-model.cpp`):
    /// a share for each device that there may be, 0 for all where there is one.
    pub(crate) fn shares(&self) -> Vec<f32> {
        // SAFETY: a constant of the library.
        let mut shares = vec![0.0; unsafe { sys::llama_max_devices() }.max(self.layers.len())];
        if self.layers.len() > 1 {
            // A layer belongs to the first device whose end it lies before: half a layer less each
            // keeps rounding from deciding.
            let mut before = 0.0;
            let mut end = 0;
            let last = self.layers.len() - 1;
            for (i, (share, &n)) in shares.iter_mut().zip(&self.layers).enumerate() {
                end += n;
                #[allow(clippy::cast_precision_loss)] // hundreds of layers
                let until = if i == last || end == 0 { end as f32 } else { end as f32 - 0.5 };
                *share = until - before;
                before = until;
            }
        }
        shares
    }
}

impl Gpu {
    /// All GPUs with memory of their own; the first one if there is none with any.
    ///
    /// # Errors
    /// When there is none at all.
    pub fn all() -> Result<Vec<Gpu>, GpuError> {
        let first = Gpu::first()?;
        // SAFETY: devices are static objects, numbered from 0.
        let devices = (0..unsafe { sys::ggml_backend_dev_count() }).map(|i| unsafe {
            let dev = sys::ggml_backend_dev_get(i);
            (dev, sys::ggml_backend_dev_type(dev))
        });
        let is_discrete = |&(_, kind): &(Dev, _)| kind == sys::GGML_BACKEND_DEVICE_TYPE_GPU;
        let mut found: Vec<Gpu> = devices
            .filter(is_discrete)
            .map(|(dev, _)| Gpu::of(dev))
            .filter(|gpu| !gpu.is_unified())
            .collect();
        if found.is_empty() {
            found.push(first);
        }
        Ok(found)
    }

    /// The first GPU.
    ///
    /// # Errors
    /// When there is none.
    pub fn first() -> Result<Gpu, GpuError> {
        crate::init();
        // Integrated ones share the memory that the CPU uses: no gain, unless it is all there is.
        let kinds = [sys::GGML_BACKEND_DEVICE_TYPE_GPU, sys::GGML_BACKEND_DEVICE_TYPE_IGPU];
        // SAFETY: devices are static objects.
        let found = kinds.into_iter().map(|kind| unsafe { sys::ggml_backend_dev_by_type(kind) });
        found.into_iter().find(|dev| !dev.is_null()).map(Gpu::of).ok_or(GpuError::None)
    }

    /// The device of this name. The CPU is one as well: it is then treated as a GPU, with memory of
    /// its own to which everything is copied; for tests.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<Gpu, GpuError> {
        crate::init();
        let unknown = || GpuError::Unknown {
            name: name.to_owned(),
            known: crate::devices().into_iter().map(|device| device.name).collect(),
        };
        let c_name = CString::new(name).map_err(|_| unknown())?;
        // SAFETY: a terminated string; devices are static objects.
        let dev = unsafe { sys::ggml_backend_dev_by_name(c_name.as_ptr()) };
        if dev.is_null() { Err(unknown()) } else { Ok(Gpu::of(dev)) }
    }

    fn of(dev: Dev) -> Gpu {
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: a static object, which returns static strings.
        unsafe {
            sys::ggml_backend_dev_memory(dev, &raw mut free, &raw mut total);
            let text = |p| CStr::from_ptr(p).to_string_lossy().into_owned();
            Gpu {
                dev,
                name: text(sys::ggml_backend_dev_name(dev)),
                description: text(sys::ggml_backend_dev_description(dev)),
                memory_total_bytes: total as u64,
                memory_free_bytes: free as u64,
            }
        }
    }

    pub(crate) fn dev(&self) -> Dev {
        self.dev
    }

    /// Whether it is the CPU, treated as a GPU.
    pub fn is_emulated(&self) -> bool {
        cpu().is_some_and(|cpu| cpu.device == self.dev)
    }

    /// Whether its backend launches a layer's kernels as one, where it can be built to: without,
    /// each is a call of its own.
    pub fn launches_graphs(&self) -> bool {
        // SAFETY: a static object, whose registry has a static name.
        let backend = unsafe {
            let reg = sys::ggml_backend_dev_backend_reg(self.dev);
            CStr::from_ptr(sys::ggml_backend_reg_name(reg)).to_string_lossy()
        };
        launches_graphs(&backend, &features(self.dev))
    }

    /// Whether it computes with the memory that we read into (Metal), so that nothing is copied.
    pub fn is_unified(&self) -> bool {
        // SAFETY: filled by ggml; a static object. Only devices that share our memory take pointers
        // to it as buffers.
        unsafe {
            let mut props: sys::ggml_backend_dev_props = std::mem::zeroed();
            sys::ggml_backend_dev_get_props(self.dev, &raw mut props);
            props.caps.buffer_from_host_ptr && !self.is_emulated()
        }
    }
}

/// Whether a backend records a layer's kernels and launches them as one: of those that can,
/// llama.cpp's own build switches it on, and ggml's leaves it off.
fn launches_graphs(backend: &str, features: &[(String, String)]) -> bool {
    backend != "CUDA" || features.iter().any(|(name, value)| name == "USE_GRAPHS" && value == "1")
}

/// What a device's backend says that it was built with: names and values.
fn features(dev: Dev) -> Vec<(String, String)> {
    type GetFeatures = unsafe extern "C" fn(Reg) -> *mut sys::ggml_backend_feature;
    let mut found = Vec::new();
    // SAFETY: device and registry are static objects. The function of this name has this type
    // (`ggml_backend_get_features_t`); its list is static and ends with a name of null.
    unsafe {
        let Some(address) = abi::function(dev, c"ggml_backend_get_features") else { return found };
        let get = std::mem::transmute::<*mut std::ffi::c_void, GetFeatures>(address);
        let mut next = get(sys::ggml_backend_dev_backend_reg(dev));
        while !next.is_null() && !(*next).name.is_null() {
            let text = |p| CStr::from_ptr(p).to_string_lossy().into_owned();
            found.push((text((*next).name), text((*next).value)));
            next = next.add(1);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_say_what_they_were_built_with() {
        crate::init();
        let cpu = features(cpu().unwrap().device);
        assert!(cpu.iter().any(|(name, _)| name == "LLAMAFILE" || name == "REPACK"), "{cpu:?}");
        let of = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let archs = of("ARCHS", "900");
        assert!(!launches_graphs("CUDA", &[]));
        assert!(!launches_graphs("CUDA", &[archs.clone(), of("NO_VMM", "1")]));
        assert!(launches_graphs("CUDA", &[archs, of("USE_GRAPHS", "1")]));
        assert!(launches_graphs("CPU", &cpu));
    }

    /// What llama.cpp makes of shares, for a model of so many layers.
    fn assigned(shares: &[f32], n_devices: usize, n_layers: u32) -> Vec<usize> {
        let sums: Vec<f32> = (1..=n_devices).map(|n| shares[..n].iter().sum()).collect();
        let total = sums[n_devices - 1];
        let splits: Vec<f32> = sums.iter().map(|sum| sum / total).collect();
        #[allow(clippy::cast_precision_loss)]
        let at = |layer: u32| layer as f32 / (n_layers + 1) as f32;
        (0..=n_layers).map(|layer| splits.partition_point(|&end| end <= at(layer))).collect()
    }

    #[test]
    fn llama_assigns_layers_as_we_do() {
        for layers in [vec![3, 6], vec![1, 1, 1], vec![40, 41], vec![0, 5, 4], vec![20, 7, 33, 1]] {
            let n_devices = layers.len();
            let n_layers = layers.iter().sum::<u32>() - 1;
            let split = Split::new(layers);
            let ours: Vec<usize> = (0..=n_layers).map(|i| split.device_of_layer(i)).collect();
            assert_eq!(assigned(&split.shares(), n_devices, n_layers), ours, "{split:?}");
            assert_eq!(split.device_of("output.weight"), n_devices - 1);
            assert_eq!(split.device_of("blk.0.ffn_up_exps.weight"), ours[0]);
        }
    }

    #[test]
    fn one_device_has_everything() {
        for split in [Split::default(), Split::new(vec![7])] {
            assert!(split.shares().iter().all(|&share| share == 0.0));
            assert_eq!((split.device_of_layer(3), split.device_of("output.weight")), (0, 0));
        }
    }
}
