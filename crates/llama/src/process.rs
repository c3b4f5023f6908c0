//! What this process takes of the machine's memory.

/// The most memory that was resident at a time, in bytes, as the system counts it.
pub fn peak_rss_bytes() -> u64 {
    // SAFETY: `usage` is a plain structure that the call fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        if libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) != 0 {
            return 0;
        }
        usage
    };
    // Linux counts in KiB, macOS in bytes.
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    u64::try_from(usage.ru_maxrss).unwrap_or(0) * unit
}

/// The memory that is resident now, in bytes. Where the system does not say (macOS, for now), the
/// peak.
pub fn rss_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
    // SAFETY: asks for a constant.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    pages.map_or_else(peak_rss_bytes, |pages| pages * page)
}

/// Lets all threads share one pool of the allocator. Otherwise each thread that has loaded a model
/// keeps tens of megabytes of its pool for later, whatever [`trim`] does: a process that loads models
/// again and again holds no budget. To be called before there are other threads.
pub fn share_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: has no preconditions.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory that the allocator keeps for later back to the system, where it can.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}
