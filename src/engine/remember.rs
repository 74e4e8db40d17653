//! What an engine remembers of sequences that are over, and for whom: the door to `memory` and `past`.

use std::sync::Arc;

use super::gpus::Sizes;
use super::memory::Memory;
use super::session::Session;
use super::{Engine, EngineConfig};
use crate::plan::{PAGE_TOKENS, Plan};

impl Engine {
    /// A sequence that already remembers as much of how these ids begin as others computed, all but the last at most.
    pub fn attach(&mut self, ids: &[u32]) -> Session {
        self.memory.attach(ids)
    }

    /// Tokens of how these ids begin that are remembered.
    pub fn remembered(&self, ids: &[u32]) -> usize {
        self.memory.kept(ids)
    }

    /// Lets others begin with what a sequence remembers, for as long as its memory is not needed for something that costs more
    /// to compute again.
    pub fn keep(&mut self, session: &Session) {
        self.keep_said(session, &[]);
    }

    /// The same, with ids that were said behind it and are not computed: by its text all of it is found again.
    pub fn keep_said(&mut self, session: &Session, said: &[u32]) {
        self.memory.keep(session, said);
        let Engine { memory, backend, disk, .. } = self;
        let (costs, shape) = (memory.costs(), Arc::clone(memory.shape()));
        memory.limit_tree(|past, victim| {
            if let (Some(disk), Some(backend)) = (&disk, backend.as_mut()) {
                disk.lose(backend, past, victim, &costs, &shape.windows);
            }
        });
    }

    /// Whether a sequence's memory is still there: it is gone where executors were replaced since.
    pub fn holds(&self, session: &Session) -> bool {
        session.is_of(&self.memory)
    }

    /// The memory of all sequences.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Forgets all sequences that are over.
    pub fn forget(&mut self) {
        self.memory.clear();
    }
}

/// Pools for the sequences of a loaded plan.
pub(super) fn sequence_memory(plan: &Plan, config: &EngineConfig) -> Memory {
    let Sizes { pages, states, kv, .. } = Sizes::new(plan, config);
    let bytes = plan.kv_bytes_per_token(kv.bytes_per_value()) * PAGE_TOKENS as f64;
    Memory::new(plan, &vec![pages; plan.groups.len()], states, bytes as usize)
}
