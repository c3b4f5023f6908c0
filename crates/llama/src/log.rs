//! llama.cpp's log, through `tracing`.

use std::ffi::{CStr, c_char, c_void};
use std::sync::Mutex;

use llama_cpp_sys_2 as sys;

/// The unfinished line (llama.cpp logs in pieces) and the first error that nobody has taken yet.
struct State {
    line: String,
    level: sys::ggml_log_level,
    first_error: Option<String>,
}

static STATE: Mutex<State> =
    Mutex::new(State { line: String::new(), level: sys::GGML_LOG_LEVEL_INFO, first_error: None });

/// A line longer than this is logged in pieces.
const LINE_BYTES_MAX: usize = 16 * 1024;

pub(crate) fn install() {
    // SAFETY: the callback is a plain function and needs no user data.
    unsafe { sys::llama_log_set(Some(on_log), std::ptr::null_mut()) };
}

/// Takes the first error line that llama.cpp has logged since the last call: it says more than a
/// null pointer.
pub fn take_error() -> Option<String> {
    STATE.lock().unwrap_or_else(std::sync::PoisonError::into_inner).first_error.take()
}

unsafe extern "C" fn on_log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a terminated string.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let mut state = STATE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if level != sys::GGML_LOG_LEVEL_CONT {
        state.level = level;
    }
    state.line.push_str(&text);
    if state.line.ends_with('\n') || state.line.len() > LINE_BYTES_MAX {
        let line = std::mem::take(&mut state.line);
        let line = line.trim_end();
        if line.is_empty() || line.chars().all(|c| c == '.') {
            return;
        }
        match state.level {
            sys::GGML_LOG_LEVEL_ERROR => {
                // What comes after the first one only says that it failed.
                state.first_error.get_or_insert_with(|| line.to_owned());
                tracing::debug!(target: "llama.cpp", "error: {line}");
            }
            sys::GGML_LOG_LEVEL_WARN => tracing::debug!(target: "llama.cpp", "warning: {line}"),
            _ => tracing::trace!(target: "llama.cpp", "{line}"),
        }
    }
}
