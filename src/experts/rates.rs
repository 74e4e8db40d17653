//! The rates of this machine, measured once with the kernels that will do the work, and kept in rynd's cache.
//!
//! RAM: products of one token with a matrix that no cache holds, by as many threads as will run. Arithmetic: a batch of
//! tokens with a matrix that stays in the cache. Disk: blocks of an expert's size, read as the disk tier reads them. The
//! better of two passes counts, in the threads' own time, because whatever else runs only takes away. A file of rates is
//! only taken for the same instruction set and number of threads; `disk_bytes_per_second` has one entry a device, and
//! `gpus` one an adapter, which `crate::gpu` measures.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rynd_quant::{ActKind, Acts, Format, Kernels, OutView, Tokens};
use serde::{Deserialize, Serialize};

use super::disk::{Aligned, Disk, DiskError, Extent};
use crate::catalog::Home;
use crate::files;
use crate::gguf::Gguf;

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    pub simd: String,
    pub threads: usize,
    /// Bytes of weights a second, one token at a time.
    pub ram_bytes_per_second: f64,
    /// Multiplications and additions a second in a batch.
    pub batch_ops_per_second: f64,
    /// Bytes a second of explicit reads, by device.
    #[serde(default)]
    pub disk_bytes_per_second: BTreeMap<String, f64>,
    /// By the adapter's name, driver and backend.
    #[serde(default)]
    pub gpus: BTreeMap<String, GpuRates>,
}

/// What was measured of one GPU.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuRates {
    /// Bytes of weights a second, one token at a time.
    pub vram_bytes_per_second: f64,
    /// Bytes a second from host memory into expert slots.
    pub bus_bytes_per_second: f64,
    /// Multiplications and additions a second in a batch.
    pub batch_ops_per_second: f64,
    /// Seconds that one more dispatch takes in a submission.
    pub dispatch_seconds: f64,
    /// Seconds from a submission to its values on the host.
    pub read_back_seconds: f64,
}

impl GpuRates {
    /// Whether these can have been measured: a figure that is zero or no number would be divided by.
    fn is_sound(&self) -> bool {
        let GpuRates { vram_bytes_per_second, bus_bytes_per_second, batch_ops_per_second, .. } = *self;
        let figures = [vram_bytes_per_second, bus_bytes_per_second, batch_ops_per_second];
        let sound = |figure: &f64| figure.is_finite() && *figure > 0.0;
        figures.iter().chain([&self.dispatch_seconds, &self.read_back_seconds]).all(sound)
    }
}

impl std::fmt::Display for GpuRates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let billions = |figure: f64| figure / 1e9;
        write!(
            f,
            "memory {:.1} GB/s, bus {:.1} GB/s, {:.0} billion operations a second in a batch, {:.1} us a dispatch, \
             {:.0} us to read back",
            billions(self.vram_bytes_per_second),
            billions(self.bus_bytes_per_second),
            billions(self.batch_ops_per_second),
            self.dispatch_seconds * 1e6,
            self.read_back_seconds * 1e6
        )
    }
}

/// The file below rynd's cache.
const FILE: &str = "rates.json";
const RAM_BYTES: usize = 384 << 20;
const BATCH_TOKENS: usize = 64;
const PASSES: usize = 2;
/// Of each thread's own time: the system's account of it moves in steps of some milliseconds.
const PASS_SECONDS: f64 = 0.12;
const MOST_SECONDS: f64 = 3.0;
/// k of the matrices, a usual width of models.
const WIDTH: usize = 2048;
const DISK_BLOCK: usize = 16 << 20;
const DISK_TIME: Duration = Duration::from_millis(600);
/// Threads that read from the disk at once, here and in the disk tier.
pub const DISK_THREADS: usize = 4;

impl Rates {
    /// The rates kept for this number of threads, if they were ever measured with this instruction set.
    pub fn load(home: &Home, threads: usize) -> Option<Rates> {
        Rates::kept(home).into_iter().find(|rates| rates.is_for(threads))
    }

    /// The rates kept for a GPU, by the key of its adapter; how many threads there were then does not matter.
    pub fn gpu(home: &Home, key: &str) -> Option<GpuRates> {
        Rates::kept(home).iter().find_map(|rates| rates.gpus.get(key).copied())
    }

    /// Whether the rates of any GPU are kept.
    pub fn has_gpus(home: &Home) -> bool {
        Rates::kept(home).iter().any(|rates| !rates.gpus.is_empty())
    }

    /// Keeps what was measured of a GPU, in place of what was known of it. The entry is that of this number of threads,
    /// whose own rates are measured when there are none.
    pub fn keep_gpu(home: &Home, threads: usize, key: &str, gpu: GpuRates) {
        let mut all = Rates::kept(home);
        for rates in &mut all {
            rates.gpus.remove(key);
        }
        let at = all.iter().position(|rates| rates.is_for(threads)).unwrap_or_else(|| {
            all.push(Rates::measure(threads));
            all.len() - 1
        });
        all[at].gpus.insert(key.to_owned(), gpu);
        Rates::write(home, &all);
    }

    /// All entries of the file. One that is damaged, or of a program that measured other things, holds none: it will be
    /// written anew.
    fn kept(home: &Home) -> Vec<Rates> {
        let text = std::fs::read_to_string(home.cache.join(FILE)).unwrap_or_default();
        let mut all: Vec<Rates> = serde_json::from_str(&text).unwrap_or_default();
        let sound = |figure: f64| figure.is_finite() && figure > 0.0;
        all.retain(|rates| sound(rates.ram_bytes_per_second) && sound(rates.batch_ops_per_second));
        all.iter_mut().for_each(|rates| rates.gpus.retain(|_, gpu| gpu.is_sound()));
        all
    }

    fn is_for(&self, threads: usize) -> bool {
        self.threads == threads && self.simd == Kernels::get().level().name()
    }

    /// Keeps the rates for the next start. Losing them costs a second, so failing to write is no error.
    pub fn save(&self, home: &Home) {
        let mut all = Rates::kept(home);
        all.retain(|rates| rates.threads != self.threads || rates.simd != self.simd);
        all.push(self.clone());
        Rates::write(home, &all);
    }

    /// Writes the file; a reader finds the old one or the new one.
    fn write(home: &Home, all: &[Rates]) {
        let path = home.cache.join(FILE);
        let Ok(text) = serde_json::to_string_pretty(all) else { return };
        let _ = std::fs::create_dir_all(&home.cache).and_then(|()| files::write(&path, text));
    }

    /// The kept rates, or freshly measured ones, of this machine and of the disk that holds the model (`None`: no disk
    /// is asked).
    pub fn of_this_machine(home: &Home, threads: usize, model: Option<&Gguf>) -> Result<Rates, DiskError> {
        let kept = Rates::load(home, threads);
        let mut rates = kept.clone().unwrap_or_else(|| Rates::measure(threads));
        if let Some(gguf) = model
            && let Some(device) = device(gguf.path())
            && !rates.disk_bytes_per_second.contains_key(&device)
            && let Some(rate) = measure_disk(gguf)?
        {
            rates.disk_bytes_per_second.insert(device, rate);
        }
        if kept.as_ref() != Some(&rates) {
            rates.save(home);
        }
        Ok(rates)
    }

    /// Explicit reads from the disk that holds this file; `None` if it was never measured.
    pub fn disk(&self, file: &Path) -> Option<f64> {
        self.disk_bytes_per_second.get(&device(file)?).copied()
    }

    /// Measures RAM and arithmetic, in about a second.
    pub fn measure(threads: usize) -> Rates {
        let kernels = Kernels::get();
        let linear = kernels.linear(Format::Q4_K);
        let row_bytes = Format::Q4_K.row_bytes(WIDTH).unwrap_or(1);
        // Bytes without meaning are as fast as any, and every page must be real.
        let weights = vec![0x11_u8; RAM_BYTES / row_bytes * row_bytes];
        let x: Vec<f32> = (0..WIDTH * BATCH_TOKENS).map(|i| (i % 7) as f32 - 3.0).collect();
        let rows = weights.len() / row_bytes;
        let mut acts = Acts::with_capacity(x.len());
        let view = activations(&mut acts, linear.act(), &x[..WIDTH]);
        let ram = best(PASSES, || {
            each(threads, rows, 2048, |range| {
                let mut out = [0.0; 2048];
                let part = &weights[range.start * row_bytes..range.end * row_bytes];
                linear.matvec(part, WIDTH, view.row(0), &mut out[..range.len()]);
                std::hint::black_box(&out);
            })
        });
        let view = activations(&mut acts, linear.act(), &x);
        let batch = best(PASSES, || {
            each(threads, 2048, 128, |range| {
                let mut out = vec![0.0; BATCH_TOKENS * range.len()];
                let part = &weights[range.start * row_bytes..range.end * row_bytes];
                let out_view = OutView::new(&mut out, range.len());
                // SAFETY: the view covers `out`, which is this thread's alone.
                unsafe { linear.matmul(part, WIDTH, range.len(), &view, Tokens::all(&view), out_view) };
                std::hint::black_box(&out);
            })
        });
        Rates {
            simd: kernels.level().name().to_owned(),
            threads,
            ram_bytes_per_second: ram * row_bytes as f64,
            batch_ops_per_second: 2.0 * batch * (WIDTH * BATCH_TOKENS) as f64,
            disk_bytes_per_second: BTreeMap::new(),
            gpus: BTreeMap::new(),
        }
    }
}

fn activations<'a>(acts: &'a mut Acts, kind: ActKind, x: &'a [f32]) -> rynd_quant::ActView<'a> {
    match kind {
        ActKind::F32 => rynd_quant::ActView::f32(x, WIDTH),
        _ => acts.quantise(kind, WIDTH, x),
    }
}

/// The highest rate of a few runs.
fn best(passes: usize, mut run: impl FnMut() -> f64) -> f64 {
    (0..passes).map(|_| run()).fold(0.0, f64::max)
}

/// Hands out `0..total` in pieces of `chunk` to threads, over and over; items a second that they would do together if
/// nothing else ran.
fn each(threads: usize, total: usize, chunk: usize, work: impl Fn(std::ops::Range<usize>) + Sync) -> f64 {
    let next = AtomicUsize::new(0);
    let worker = || {
        let (start, clock) = (busy_seconds(), Instant::now());
        let mut done = 0;
        loop {
            let from = next.fetch_add(chunk, Ordering::Relaxed) % total;
            let range = from..(from + chunk).min(total);
            done += range.len();
            work(range);
            let (busy, passed) = (busy_seconds() - start, clock.elapsed().as_secs_f64());
            if busy >= PASS_SECONDS {
                return done as f64 / busy;
            }
            // On a machine this busy, or one that keeps no account, the clock has to do.
            if passed >= MOST_SECONDS {
                return done as f64 / if busy > 0.0 { busy } else { passed };
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).sum()
    })
}

/// Seconds that this thread has run, which other programs do not lengthen; 0 where the system does not tell.
fn busy_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|text| text.parse::<u64>().ok());
    nanoseconds.unwrap_or(0) as f64 / 1e9
}

/// Reads blocks all over the model's largest file for a while; `None` where the file is too small to tell.
fn measure_disk(gguf: &Gguf) -> Result<Option<f64>, DiskError> {
    let disk = Disk::open(gguf, None)?;
    let tensors = gguf.tensors();
    let len = tensors.iter().map(|t| (t.shard, (t.offset + t.bytes) as u64)).max_by_key(|(_, end)| *end);
    let Some((shard, end)) = len else { return Ok(None) };
    let blocks = (end / DISK_BLOCK as u64).saturating_sub(1);
    if blocks < 8 {
        return Ok(None);
    }
    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let start = Instant::now();
    let results: Vec<Result<(), DiskError>> = std::thread::scope(|scope| {
        let reader = || {
            let Some(buffer) = Aligned::zeroed(DISK_BLOCK) else { return Ok(()) };
            while start.elapsed() < DISK_TIME {
                // A stride without a common factor visits the file in no order that read-ahead could guess.
                let i = next.fetch_add(1, Ordering::Relaxed) as u64;
                let offset = (i * 97 + 13) % blocks * DISK_BLOCK as u64;
                let extent = Extent { shard, offset, bytes: DISK_BLOCK };
                // A cached block would say nothing of the disk.
                disk.forget(extent);
                // SAFETY: the buffer is this thread's own.
                disk.read(extent, unsafe { buffer.bytes_mut(0..DISK_BLOCK) })?;
                done.fetch_add(DISK_BLOCK, Ordering::Relaxed);
            }
            Ok(())
        };
        let threads: Vec<_> = (0..DISK_THREADS).map(|_| scope.spawn(reader)).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    results.into_iter().collect::<Result<(), _>>()?;
    Ok(Some(done.into_inner() as f64 / seconds))
}

/// A name for the device that holds a file, the same at every start.
#[cfg(unix)]
fn device(file: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    Some(format!("device {}", std::fs::metadata(file).ok()?.dev()))
}

#[cfg(not(unix))]
fn device(file: &Path) -> Option<String> {
    let root = std::fs::canonicalize(file).ok()?.components().next()?.as_os_str().to_string_lossy().into_owned();
    Some(format!("device {root}"))
}

/// All RAM of this machine; `None` where the system does not tell.
pub fn ram_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// What rynd itself takes beside weights, cache and buffers: the program, and a vocabulary that is yet to be read.
pub fn own_bytes() -> u64 {
    const VOCABULARY: u64 = 64 << 20;
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    };
    VOCABULARY + field("RssAnon:").unwrap_or(super::cost::OWN_BYTES - VOCABULARY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(vram: f64) -> GpuRates {
        GpuRates {
            vram_bytes_per_second: vram,
            bus_bytes_per_second: 25e9,
            batch_ops_per_second: 2e13,
            dispatch_seconds: 3e-6,
            read_back_seconds: 4e-5,
        }
    }

    fn machine(threads: usize) -> Rates {
        Rates {
            simd: Kernels::get().level().name().to_owned(),
            threads,
            ram_bytes_per_second: 3e10,
            batch_ops_per_second: 1e12,
            disk_bytes_per_second: BTreeMap::new(),
            gpus: BTreeMap::new(),
        }
    }

    #[test]
    fn rates_of_a_gpu_are_kept_once_and_found_with_any_number_of_threads() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        machine(3).save(&home);
        machine(5).save(&home);
        Rates::keep_gpu(&home, 3, "a", gpu(1e12));
        Rates::keep_gpu(&home, 3, "b", gpu(2e12));
        assert_eq!(Rates::gpu(&home, "a"), Some(gpu(1e12)));
        Rates::keep_gpu(&home, 5, "a", gpu(3e12));
        assert_eq!(Rates::gpu(&home, "a"), Some(gpu(3e12)), "the old figures are gone");
        let loaded = Rates::load(&home, 3).unwrap();
        assert_eq!(loaded.gpus.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(Rates::gpu(&home, "c"), None);
        let files: Vec<_> = std::fs::read_dir(&home.cache).unwrap().map(|f| f.unwrap().file_name()).collect();
        assert_eq!(files, ["rates.json"], "nothing partial is left");
    }

    #[test]
    fn a_file_of_rates_that_is_damaged_or_old_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        std::fs::create_dir_all(&home.cache).unwrap();
        let path = home.cache.join(FILE);
        machine(2).save(&home);
        let old = std::fs::read_to_string(&path).unwrap().replace("ram_bytes_per_second", "ram_rate");
        for text in ["", "{", "[1, 2]", &old] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(Rates::load(&home, 2), None, "{text}");
            assert!(!Rates::has_gpus(&home));
            machine(2).save(&home);
            Rates::keep_gpu(&home, 2, "a", gpu(1e12));
            assert_eq!(Rates::gpu(&home, "a"), Some(gpu(1e12)), "{text}");
        }
        // A figure that nobody can have measured is no figure; the rest of the entry stands.
        let zero = std::fs::read_to_string(&path).unwrap().replace("3e-6", "0.0");
        assert_ne!(zero, std::fs::read_to_string(&path).unwrap());
        std::fs::write(&path, zero).unwrap();
        assert_eq!(Rates::gpu(&home, "a"), None);
        assert!(Rates::load(&home, 2).is_some());
    }
}
