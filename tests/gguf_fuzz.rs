//! Mutated headers: whatever a file says, reading it ends in a model or an error, without a panic and in bounded memory.
//!
//! Seeded, so that a failure can be repeated: it prints the number of the mutation. Memory is counted by this binary's
//! allocator; hence one test only.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rynd::gguf::{Array, Gguf, Value, Writer};
use rynd_quant::Format;

const MUTATIONS: u64 = 120_000;

/// What reading and showing a header may hold at once: a table row or a key costs a few times its bytes in the file.
const FIXED_BYTES: usize = 8 << 10;
const BYTES_PER_FILE_BYTE: usize = 4;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system allocator unchanged; the counters do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// A file to start from, and the places in it where lengths, types, counts and offsets stand.
struct Seed {
    bytes: Vec<u8>,
    fields: Vec<usize>,
}

fn write(name: &str, keys: &[(&str, Value)], tensors: &[(&str, Format, &[u64])]) -> Seed {
    let path = std::env::temp_dir().join(format!("rynd-fuzz-{name}-{}.gguf", std::process::id()));
    let mut w = Writer::create(&path).unwrap();
    for (key, value) in keys {
        w.set(key, value.clone()).unwrap();
    }
    for (name, format, shape) in tensors {
        w.declare(name, *format, shape).unwrap();
    }
    for (name, format, shape) in tensors {
        let rows: u64 = shape[1..].iter().product();
        w.write_tensor(name, &vec![1; format.row_bytes(shape[0] as usize).unwrap() * rows as usize]).unwrap();
    }
    w.finish().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();

    let find = |name: &str| bytes.windows(name.len()).position(|w| w == name.as_bytes()).unwrap();
    let mut fields = vec![0, 4, 8, 16];
    for name in keys.iter().map(|k| k.0).chain(tensors.iter().map(|t| t.0)) {
        let (start, end) = (find(name), find(name) + name.len());
        fields.push(start - 8);
        fields.extend((0..32).step_by(4).map(|n| end + n));
    }
    fields.retain(|&at| at + 8 <= bytes.len());
    Seed { bytes, fields }
}

fn seeds() -> Vec<Seed> {
    let golden = Gguf::open(Path::new("tests/fixtures/quantized/qwen2-Q4_K_M.gguf")).unwrap();
    let keys: Vec<(&str, Value)> = golden.metadata().map(|(key, value)| (key, value.clone())).collect();
    // The golden's names with small shapes: the header is what is mutated.
    let tensors: Vec<(&str, Format, &[u64])> =
        golden.tensors().iter().map(|t| (t.name.as_str(), Format::Q8_0, &[32u64, 2][..])).collect();
    let nested = Array::of_arrays([
        Array::of_strings(["a", "bc"]),
        Array::of_arrays([Array::from(&[1u64, 2][..]), Array::from(&[0.5f64][..])]),
    ]);
    let types: Vec<(&str, Value)> = vec![
        ("general.alignment", 64u32.into()),
        ("k.u8", 1u8.into()),
        ("k.i16", (-1i16).into()),
        ("k.u64", u64::MAX.into()),
        ("k.f64", 0.5f64.into()),
        ("k.bool", true.into()),
        ("k.text", "text".into()),
        ("k.nested", nested.into()),
        ("k.floats", Array::from(&[1.0f32, f32::NAN][..]).into()),
        ("k.bools", Array::from(&[true, false, true][..]).into()),
        ("split.no", 0u16.into()),
        ("split.count", 1u16.into()),
        ("split.tensors.count", 3i32.into()),
    ];
    let formats: [(&str, Format, &[u64]); 3] =
        [("t.iq", Format::IQ4_NL, &[32, 3, 2]), ("t.nv", Format::NVFP4, &[64]), ("t.k", Format::Q6_K, &[256, 1, 1, 2])];
    vec![write("golden", &keys, &tensors), write("types", &types, &formats), write("small", &types[..2], &formats[..1])]
}

/// One to four random changes, half of them to a field of the header.
fn mutate(seed: &Seed, rng: &mut Rng) -> Vec<u8> {
    const NUMBERS: [u64; 14] =
        [0, 1, 2, 8, 9, 31, 40, 0x7f, 1 << 31, u32::MAX as u64, 1 << 32, i64::MAX as u64, (1 << 63) + 32, u64::MAX];
    let mut bytes = seed.bytes.clone();
    for _ in 0..1 + rng.below(4) {
        let len = bytes.len();
        if len < 16 {
            break;
        }
        let at = match rng.below(2) {
            0 => seed.fields[rng.below(seed.fields.len())].min(len - 8),
            _ => rng.below(len - 8),
        };
        match rng.below(10) {
            0 | 1 => bytes[at] ^= 1 << rng.below(8),
            2 => bytes[at] = rng.next() as u8,
            3 | 4 => bytes[at..at + 8].copy_from_slice(&NUMBERS[rng.below(NUMBERS.len())].to_le_bytes()),
            5 => bytes[at..at + 4].copy_from_slice(&(NUMBERS[rng.below(NUMBERS.len())] as u32).to_le_bytes()),
            6 => {
                let number = (len + rng.below(65)).wrapping_sub(32 + rng.below(2) * at) as u64;
                bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
            }
            7 => bytes.truncate(rng.below(len)),
            8 => drop(bytes.drain(at..at + rng.below((len - at).min(64)))),
            _ => {
                let part = bytes[at..at + rng.below((len - at).min(128))].to_vec();
                let to = rng.below(len);
                bytes.splice(to..to, part);
            }
        }
    }
    bytes
}

/// Looks at everything that a reader of the file could ask for.
fn use_all(g: &Gguf) {
    for (key, value) in g.metadata() {
        black_box(value.to_string());
        let _ = black_box((g.opt_u32(key), g.opt_f32(key), g.opt_str(key).is_ok()));
        if let Some(array) = value.as_array() {
            assert!(array.iter().count() == array.len(), "an accepted array is whole");
            let _ = black_box((g.opt_strs(key).is_ok(), g.opt_f32s(key).is_ok(), g.opt_i32s(key).is_ok()));
        }
    }
    for t in g.tensors() {
        let bytes = g.bytes(t);
        assert_eq!(bytes.len(), t.bytes);
        black_box((bytes[0], bytes[t.bytes - 1], t.elements()));
        assert_eq!(g.tensor(&t.name), Some(t));
    }
}

struct Say(u64);

impl Drop for Say {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("mutation {} failed", self.0);
        }
    }
}

#[test]
fn no_mutated_header_panics_or_takes_unbounded_memory() {
    let seeds = seeds();
    let mut rng = Rng(0x5eed);
    let (mut accepted, mut refused) = (0u64, 0u64);
    for i in 0..MUTATIONS {
        let _say = Say(i);
        let seed = &seeds[rng.below(seeds.len())];
        let bytes = mutate(seed, &mut rng);
        let limit = FIXED_BYTES + BYTES_PER_FILE_BYTE * bytes.len();
        let before = LIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        match Gguf::from_bytes(Path::new("fuzz.gguf"), bytes.into()) {
            Ok(g) => {
                use_all(&g);
                accepted += 1;
            }
            Err(error) => {
                assert!(error.to_string().starts_with("fuzz.gguf: "), "{error}");
                refused += 1;
            }
        }
        let taken = PEAK.load(Relaxed) - before;
        assert!(taken <= limit, "{taken} bytes taken, {limit} allowed");
    }
    println!("{accepted} accepted, {refused} refused");
    // Both ways through the reader must have been taken often, or the mutations test nothing.
    assert!(accepted > MUTATIONS / 100 && refused > MUTATIONS / 10, "{accepted} accepted, {refused} refused");
}
