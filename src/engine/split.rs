//! One plan on several executors: the CPU and any number of GPUs, stage by stage.
//!
//! A placed plan is a list of stages: a stretch of steps on one side, or values on their way to another. GPU stages are
//! submitted and not waited for; what another side will read is copied to the host by the submission that writes it, so
//! a hop costs one wait and no further submission. A token that runs on one GPU from end to end is one submission and
//! one read-back, the logits'. Values hop through host memory: wgpu has no copy between devices.

use std::ops::Range;
use std::sync::Arc;

use super::hybrid::{Hybrid, LayerRun};
use crate::backend::{Backend, BackendError, Env, PickLog, Picks};
use crate::cpu::Cpu;
use crate::gpu::Gpu;
use crate::plan::{Op, Plan, Router, Side, Slot, SlotKind, Stage, stages};

/// The executors of one placed plan.
pub struct Split {
    plan: Arc<Plan>,
    stages: Vec<Stage>,
    cpu: Cpu,
    gpus: Vec<Gpu>, // by the number of their side
    /// Where each slot was written last.
    home: Vec<Side>,
    hop: Vec<f32>,
    hop_ids: Vec<u32>,
    /// Pages experts to the GPUs, when they do not all fit.
    hybrid: Option<Hybrid>,
    /// Who wants to know what the routers pick.
    log: Option<Arc<PickLog>>,
    /// Of the logits only the largest is wanted.
    best: bool,
}

impl Split {
    /// Executors that were made for this placed plan.
    pub fn new(plan: Arc<Plan>, cpu: Cpu, gpus: Vec<Gpu>) -> Split {
        let home = vec![Side::Cpu; plan.slots.len()];
        Split {
            stages: stages(&plan),
            plan,
            cpu,
            gpus,
            home,
            hop: vec![],
            hop_ids: vec![],
            hybrid: None,
            log: None,
            best: false,
        }
    }

    /// From now on the experts that have slots come and go.
    pub fn page_experts(&mut self, hybrid: Hybrid) {
        self.hybrid = Some(hybrid);
    }

    /// What pages experts, if anything does.
    pub fn hybrid(&self) -> Option<&Hybrid> {
        self.hybrid.as_ref()
    }

    /// Pages that caches which trade memory with experts have room for now; `None` when they do not.
    pub fn cache_room(&self) -> Option<usize> {
        self.hybrid.as_ref().and_then(Hybrid::cache_room)
    }

    /// Before a run that uses the first `pages` pages: GPUs that page experts change the room of their caches when need be.
    pub fn fit_cache(&mut self, pages: usize) -> Result<(), BackendError> {
        self.hybrid.as_mut().map_or(Ok(()), |hybrid| hybrid.fit_cache(&mut self.gpus, pages))
    }

    /// What pages experts, if anything does.
    pub fn hybrid_mut(&mut self) -> Option<&mut Hybrid> {
        self.hybrid.as_mut()
    }

    /// From now on what the routers pick is copied here.
    pub fn log_picks(&mut self, log: Arc<PickLog>) {
        self.cpu.log_picks(Arc::clone(&log));
        self.log = Some(log);
    }

    /// The GPUs, by the number of their side.
    pub fn gpus(&self) -> &[Gpu] {
        &self.gpus
    }

    /// The GPUs, by the number of their side.
    pub fn gpus_mut(&mut self) -> &mut [Gpu] {
        &mut self.gpus
    }

    /// Takes over what all steps of a run share; experts that arrived since the run before count from now on.
    pub fn begin(&mut self, env: &Env) -> Result<(), BackendError> {
        if let Some(token) = env.tokens.iter().find(|token| token.id as usize >= self.plan.vocab) {
            return Err(BackendError::UnknownToken { id: token.id, vocab: self.plan.vocab });
        }
        if env.tokens.is_empty() {
            return Ok(());
        }
        for gpu in &mut self.gpus {
            gpu.begin(env)?;
        }
        self.hybrid.as_mut().map_or(Ok(()), |hybrid| hybrid.begin(&mut self.gpus, env))
    }

    /// As `run`, for steps that end in logits of which only each row's largest is wanted.
    pub fn submit_best(&mut self, steps: Range<usize>, env: &Env) -> Result<(), BackendError> {
        self.best = true;
        let result = self.run(steps, env);
        self.best = false;
        result
    }

    /// The ids of the largest logits, after `submit_best`.
    pub fn read_best(
        &mut self,
        env: &Env,
        logits: (Slot, usize),
        best: &mut [Option<u32>],
    ) -> Result<(), BackendError> {
        match self.home[logits.0.0 as usize] {
            Side::Gpu(gpu) => self.gpus[gpu as usize].read_best(best),
            // The steps are done: only the logits are looked at.
            Side::Cpu => self.cpu.run_best(0..0, env, logits, best),
        }
    }

    /// After the whole body was run for these tokens: what was picked is learned, and experts move.
    pub fn end(&mut self, env: &Env) -> Result<(), BackendError> {
        if env.tokens.is_empty() {
            return Ok(());
        }
        self.cpu.age_tier(env.tokens.len())?;
        match &mut self.hybrid {
            Some(hybrid) => hybrid.end(&mut self.gpus, env, self.log.as_deref()),
            None => Ok(()),
        }
    }

    /// Steps of a stage that one side runs.
    fn run_stage(&mut self, side: Side, steps: Range<usize>, wanted: &[Slot], env: &Env) -> Result<(), BackendError> {
        let plan = Arc::clone(&self.plan);
        let written = || plan.steps[steps.clone()].iter().flat_map(|step| step.op.writes());
        match side {
            Side::Cpu => {
                let from = self.run_experts(side, steps.clone(), env)?;
                self.cpu.run(from..steps.end, env)?;
            }
            Side::Gpu(gpu) => {
                // A part of a stage reads back only what it wrote itself.
                let wanted: Vec<Slot> = wanted.iter().copied().filter(|slot| written().any(|s| s == *slot)).collect();
                let from = self.run_experts(side, steps.clone(), env)?;
                let gpu = &mut self.gpus[gpu as usize];
                if self.best && wanted == [plan.logits] {
                    gpu.submit_best(from..steps.end, &[])?;
                } else {
                    gpu.submit(from..steps.end, &wanted)?;
                }
            }
        }
        for slot in written() {
            self.home[slot.0 as usize] = side;
        }
        Ok(())
    }

    /// Of a side's steps those up to the last one that another side has a part in: experts in slots, and a GPU's routers when
    /// someone wants to know their picks. Returns where the rest begins.
    fn run_experts(&mut self, side: Side, steps: Range<usize>, env: &Env) -> Result<usize, BackendError> {
        let mut from = steps.start;
        if let Some(hybrid) = &mut self.hybrid {
            for layer in hybrid.layers_in(&steps) {
                let (cpu, gpus) = (&mut self.cpu, &mut self.gpus[..]);
                hybrid.run_layer(layer, &mut LayerRun { cpu, gpus, env, from, logged: self.log.is_some() })?;
                if let Some(log) = &self.log {
                    hybrid.log(layer, log);
                }
                from = hybrid.step(layer).map_or(from, |step| step + 1);
            }
        } else if let (Some(log), Side::Gpu(gpu)) = (&self.log, side) {
            let gpu = gpu as usize;
            let mut picks = Picks::default();
            for step in steps {
                if let Op::Router(Router { weight, routing, ids, weights, .. }) = self.plan.steps[step].op {
                    self.gpus[gpu].submit(from..step + 1, &[ids, weights])?;
                    let pairs = env.tokens.len() * routing.used;
                    picks.ids.resize(pairs, 0);
                    picks.weights.resize(pairs, 0.0);
                    self.gpus[gpu].read_u32(ids, &mut picks.ids)?;
                    self.gpus[gpu].read(weights, &mut picks.weights)?;
                    log.put(weight, &picks.ids, &picks.weights);
                    from = step + 1;
                }
            }
        }
        Ok(from)
    }

    /// A slot's value from one side to another.
    fn hop(&mut self, slot: Slot, from: Side, to: Side, env: &Env) -> Result<(), BackendError> {
        let info = self.plan.slot(slot);
        let rows = if info.taken { env.rows.len() } else { env.tokens.len() };
        match info.kind {
            SlotKind::F32 => {
                let mut values = std::mem::take(&mut self.hop);
                values.resize(rows * info.width, 0.0);
                let result = self.side(from).read(slot, &mut values).and_then(|()| self.side(to).write(slot, &values));
                self.hop = values;
                result
            }
            SlotKind::U32 => {
                let mut ids = std::mem::take(&mut self.hop_ids);
                ids.resize(rows * info.width, 0);
                let result =
                    self.side(from).read_u32(slot, &mut ids).and_then(|()| self.side(to).write_u32(slot, &ids));
                self.hop_ids = ids;
                result
            }
        }
    }

    fn side(&mut self, side: Side) -> &mut dyn Backend {
        match side {
            Side::Cpu => &mut self.cpu,
            Side::Gpu(gpu) => &mut self.gpus[gpu as usize],
        }
    }
}

impl Backend for Split {
    /// Between `begin` and `end`.
    fn run(&mut self, steps: Range<usize>, env: &Env) -> Result<(), BackendError> {
        if env.tokens.is_empty() {
            return Ok(());
        }
        let list = std::mem::take(&mut self.stages);
        let result = list.iter().try_for_each(|stage| {
            let here = stage.steps().start.max(steps.start)..stage.steps().end.min(steps.end);
            if here.is_empty() {
                return Ok(());
            }
            if env.is_stopped() {
                return Err(BackendError::Stopped);
            }
            match stage {
                Stage::Run { side, wanted, .. } => self.run_stage(*side, here, wanted, env),
                Stage::Move { from, to, slots, .. } => {
                    let first = stage.steps().start;
                    slots[here.start - first..here.end - first]
                        .iter()
                        .try_for_each(|&slot| self.hop(slot, *from, *to, env))
                }
            }
        });
        self.stages = list;
        result
    }

    fn run_best(
        &mut self,
        steps: Range<usize>,
        env: &Env,
        logits: (Slot, usize),
        best: &mut [Option<u32>],
    ) -> Result<(), BackendError> {
        self.submit_best(steps, env)?;
        self.read_best(env, logits, best)
    }

    fn read(&mut self, slot: Slot, out: &mut [f32]) -> Result<(), BackendError> {
        self.side(self.home[slot.0 as usize]).read(slot, out)
    }

    fn write(&mut self, slot: Slot, rows: &[f32]) -> Result<(), BackendError> {
        self.cpu.write(slot, rows)?;
        self.gpus.iter_mut().filter(|gpu| gpu.has(slot)).try_for_each(|gpu| gpu.write(slot, rows))
    }

    fn read_u32(&mut self, slot: Slot, out: &mut [u32]) -> Result<(), BackendError> {
        self.side(self.home[slot.0 as usize]).read_u32(slot, out)
    }

    fn write_u32(&mut self, slot: Slot, rows: &[u32]) -> Result<(), BackendError> {
        self.cpu.write_u32(slot, rows)?;
        self.gpus.iter_mut().filter(|gpu| gpu.has(slot)).try_for_each(|gpu| gpu.write_u32(slot, rows))
    }

    fn page_bytes(&self, group: usize) -> usize {
        self.cpu.page_bytes(group) + self.gpus.iter().map(|gpu| gpu.page_bytes(group)).sum::<usize>()
    }

    fn save_page(&mut self, group: usize, page: u32, out: &mut Vec<u8>) -> Result<(), BackendError> {
        self.cpu.save_page(group, page, out)?;
        self.gpus.iter_mut().try_for_each(|gpu| gpu.save_page(group, page, out))
    }

    fn load_page(&mut self, group: usize, page: u32, bytes: &[u8]) -> Result<(), BackendError> {
        let (here, mut rest) = bytes.split_at(self.cpu.page_bytes(group));
        self.cpu.load_page(group, page, here)?;
        for gpu in &mut self.gpus {
            let (here, others) = rest.split_at(gpu.page_bytes(group));
            gpu.load_page(group, page, here)?;
            rest = others;
        }
        Ok(())
    }

    // No kernel of a GPU keeps a state yet: placement leaves such steps to the CPU.

    fn state_bytes(&self) -> usize {
        self.cpu.state_bytes()
    }

    fn save_state(&mut self, state: u32, out: &mut Vec<u8>) -> Result<(), BackendError> {
        self.cpu.save_state(state, out)
    }

    fn load_state(&mut self, state: u32, bytes: &[u8]) -> Result<(), BackendError> {
        self.cpu.load_state(state, bytes)
    }

    fn copy_page(&mut self, group: usize, from: u32, to: u32) -> Result<(), BackendError> {
        self.cpu.copy_page(group, from, to)?;
        self.gpus.iter_mut().try_for_each(|gpu| gpu.copy_page(group, from, to))
    }
}
