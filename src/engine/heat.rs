//! What is known of a model's experts when it is loaded, and what a run adds: the profile that the user names, or what
//! earlier runs left behind, in a file named by the key of the model's routers.
//!
//! With experts on GPUs the pager counts the picks. Where none moves, on the CPU with or without a RAM tier, `Watch` does:
//! one increment a pick, from the log that the executor fills anyway for traces.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{expert_header, router_key};
use super::{EngineConfig, EngineError};
use crate::backend::{Env, PickLog};
use crate::experts::{Grid, Heat, Trace};
use crate::files;
use crate::gguf::Gguf;
use crate::plan::Plan;

/// Where a run begins.
#[derive(Default)]
pub struct Known {
    /// The sidecar's place and what it holds; this run's picks will be added. `None` when nothing is kept.
    pub saved: Option<(PathBuf, Heat)>,
    /// What the scores start from: the profile, else the sidecar.
    pub start: Option<Heat>,
}

impl Known {
    /// `None` for a model without experts.
    pub fn read(gguf: &Gguf, plan: &Plan, config: &EngineConfig) -> Result<Option<Known>, EngineError> {
        let options = &config.experts;
        if options.heat.is_none() && options.profile.is_none() {
            return Ok(None);
        }
        let Some(header) = expert_header(gguf, plan) else { return Ok(None) };
        let (key, grid) = (router_key(gguf, plan), header.grid());
        let saved = saved(config, &key, &grid);
        let start = match &options.profile {
            Some(path) => Some(profile(path.clone(), &key, &grid)?),
            None => saved.as_ref().map(|(_, heat)| heat.clone()),
        };
        Ok(Some(Known { saved, start }))
    }
}

/// Counts what the routers pick where no pager does, and saves it at the end.
pub struct Watch {
    log: Arc<PickLog>,
    path: PathBuf,
    heat: Heat,
    counts: Vec<Vec<u32>>, // (layers, experts)
    tokens: u64,
    notice: fn(&str),
}

impl Watch {
    /// Adds the picks of this log to `heat`, which belongs to `path`.
    pub fn new(log: Arc<PickLog>, (path, heat): (PathBuf, Heat), notice: fn(&str)) -> Watch {
        let counts = heat.picks.iter().map(|layer| vec![0; layer.len()]).collect();
        Watch { log, path, heat, counts, tokens: 0, notice }
    }

    /// Takes in the run that has just ended.
    pub fn see(&mut self, env: &Env) {
        let tokens = env.tokens.len();
        self.tokens += tokens as u64;
        let counts = &mut self.counts;
        self.log.with(|layers| {
            for (picks, counts) in layers.iter().zip(counts) {
                for &id in &picks.ids {
                    if let Some(count) = counts.get_mut(id as usize) {
                        *count += 1;
                    }
                }
            }
        });
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.tokens > 0 {
            self.heat.merge(|layer, expert| self.counts[layer][expert], self.tokens);
            save(&self.path, &self.heat, self.notice);
        }
    }
}

/// Saves what was learned; that it could not be is told.
pub fn save(path: &Path, heat: &Heat, notice: fn(&str)) {
    let saved = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| files::write(path, heat.encode()));
    if let Err(e) = saved {
        let path = path.display();
        notice(&format!("what was learned about the experts could not be saved to {path}: {e}"));
    }
}

/// A profile that the user names must be right.
fn profile(file: PathBuf, key: &str, grid: &Grid) -> Result<Heat, EngineError> {
    let failed = |cause: String| EngineError::Profile { file: file.clone(), cause };
    let bytes = std::fs::read(&file).map_err(|e| failed(e.to_string()))?;
    // A trace is a profile too.
    match bytes.first() {
        Some(b'{') => Heat::parse(&bytes, key, grid),
        _ => Heat::of_trace(&Trace::parse(&bytes).map_err(|e| failed(e.to_string()))?, key, grid),
    }
    .map_err(|e| failed(e.to_string()))
}

/// The sidecar's place and what it holds; one that can not be read is begun anew, which is told.
fn saved(config: &EngineConfig, key: &str, grid: &Grid) -> Option<(PathBuf, Heat)> {
    let path = config.experts.heat.as_ref()?.join(format!("{key}.json"));
    let fresh = || Heat::new(key, grid);
    let heat = match std::fs::read(&path) {
        Ok(bytes) => Heat::parse(&bytes, key, grid).unwrap_or_else(|e| {
            (config.notice)(&format!("{} is begun anew: {e}", path.display()));
            fresh()
        }),
        Err(_) => fresh(),
    };
    Some((path, heat))
}
