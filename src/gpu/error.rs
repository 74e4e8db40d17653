//! Why a GPU can not be used, or not any more.

use crate::backend::BackendError;

/// Why a GPU can not be used, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error("no GPU {index}; `rynd devices` lists {count} adapter(s), counted from 0")]
    NoSuchAdapter { index: usize, count: usize },
    #[error("no usable GPU: {why}; run with --gpu off, or see `rynd devices`")]
    NoAdapter { why: String },
    #[error("{adapter} can not be used: {why}; run with --gpu off or choose another with --gpu")]
    Unusable { adapter: String, why: String },
    #[error("{adapter} refused {bytes} bytes for {what}; lower --gpu-layers, -c or --gpu-memory")]
    OutOfMemory { adapter: String, what: String, bytes: u64 },
    #[error("{what} needs {bytes} bytes, but --gpu-memory leaves {left}; raise it, or lower --gpu-layers or -c")]
    OverBudget { what: String, bytes: u64, left: u64 },
    #[error("the cache can not grow to {tokens} tokens: {why}; raise --gpu-memory, lower -c, or use --kv q8_0")]
    CacheFull { tokens: usize, why: String },
    #[error("{what} needs {bytes} bytes in one piece, and {adapter} binds at most {limit}; {advice}")]
    TooLarge { adapter: String, what: String, bytes: u64, limit: u64, advice: &'static str },
    #[error("shaders/{file}:{line}: {message}; this is a fault of rynd or of the driver, please report it")]
    Shader { file: &'static str, line: u32, message: String },
    #[error("the GPU can not run {what}: {why}; leave it on the CPU")]
    Unsupported { what: String, why: String },
    #[error("{adapter} was lost or failed: {message}; restart, and if it happens again use --gpu off")]
    Lost { adapter: String, message: String },
}

impl From<GpuError> for BackendError {
    fn from(e: GpuError) -> BackendError {
        match e {
            GpuError::Lost { .. } | GpuError::OutOfMemory { .. } => BackendError::Lost(e.to_string()),
            e => BackendError::Device(e.to_string()),
        }
    }
}
