//! Pages of the caches, from one place to another: copied on the device, to the host and back.

use super::Gpu;
use super::error::GpuError;
use super::ops::KvBuffers;
use super::run::map_on_submit;

impl Gpu {
    /// The caches of a page group here.
    pub(super) fn caches_of(&self, group: usize) -> impl Iterator<Item = &KvBuffers> {
        let of_group = move |(kv, buffers): (_, &'_ Option<KvBuffers>)| -> bool {
            let kv: &crate::plan::Kv = kv;
            kv.group == group && buffers.is_some()
        };
        self.plan.kv.iter().zip(&self.kv).filter(move |pair| of_group(*pair)).filter_map(|(_, kv)| kv.as_ref())
    }

    /// Buffers of a group's caches with the bytes of a page of each, in the order in which a saved page has them.
    fn page_parts(&self, group: usize) -> Vec<(wgpu::Buffer, u64)> {
        let parts = self.caches_of(group);
        let both = |kv: &KvBuffers| [(kv.keys.clone(), kv.key_page_bytes), (kv.values.clone(), kv.value_page_bytes)];
        parts.flat_map(both).collect()
    }

    /// Copies a page of every cache of a group here.
    pub(super) fn copy_cache_page(&mut self, group: usize, from: u32, to: u32) -> Result<(), GpuError> {
        if from == to {
            return Ok(());
        }
        let mut encoder = self.device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for (buffer, bytes) in self.page_parts(group) {
            // A buffer can not be copied to itself: each page goes through scratch memory.
            encoder.copy_buffer_to_buffer(&buffer, u64::from(from) * bytes, &self.page, 0, bytes);
            encoder.copy_buffer_to_buffer(&self.page, 0, &buffer, u64::from(to) * bytes, bytes);
        }
        self.device.queue().submit([encoder.finish()]);
        self.counters.submits += 1;
        self.device.check()
    }

    /// Appends a page of every cache of a group here.
    pub(super) fn save_cache_page(&mut self, group: usize, page: u32, out: &mut Vec<u8>) -> Result<(), GpuError> {
        let parts = self.page_parts(group);
        let all: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
        if all == 0 {
            return Ok(());
        }
        let host = self.host_buffer(all)?;
        let mut encoder = self.device.wgpu().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut at = 0;
        for (buffer, bytes) in parts {
            encoder.copy_buffer_to_buffer(&buffer, u64::from(page) * bytes, &host, at, bytes);
            at += bytes;
        }
        let mapped = map_on_submit(&encoder, &host);
        let submission = self.device.queue().submit([encoder.finish()]);
        self.counters.submits += 1;
        self.device.wait_for(submission)?;
        let lost = |e: &dyn std::fmt::Display| self.device.lost(e.to_string());
        mapped.recv().map_err(|e| lost(&e))?.map_err(|e| lost(&e))?;
        let bytes = host.get_mapped_range(..all).map_err(|e| lost(&e))?;
        out.extend_from_slice(&bytes);
        drop(bytes);
        self.keep(host);
        Ok(())
    }

    /// Overwrites a page of every cache of a group here with what was saved.
    pub(super) fn load_cache_page(&mut self, group: usize, page: u32, bytes: &[u8]) -> Result<(), GpuError> {
        let mut at = 0;
        for (buffer, len) in self.page_parts(group) {
            let part = &bytes[at..at + len as usize];
            self.device.queue().write_buffer(&buffer, u64::from(page) * len, part);
            at += len as usize;
        }
        self.counters.written_bytes += at as u64;
        self.device.check()
    }
}
