//! The other way to use GPUs: whole layers with their experts, as many as fit, and the rest on the CPU.
//!
//! The guard compares the cache of experts with experts on the CPU, which costs nothing to try. Whole layers have to be
//! uploaded first, so they are predicted from measured rates, and tried, once a run, only when that says that they win. No
//! clock and no device here: the caller says what a token reads where, and how long tokens took.

use serde::Serialize;

use super::guard::{TOLERANCE, Verdict, median};
use super::rates::GpuRates;

/// Tokens of a trial that are not counted: they find caches and pages as the switch left them.
const SKIPPED: usize = 2;
/// Tokens that are.
const COUNTED: usize = 9;
/// The CPU's part of a measured token is this much of it at least, whatever is predicted of the GPUs' part.
const LEAST_CPU_SHARE: f64 = 0.1;

/// What one token asks of a placement.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Work {
    /// By GPU.
    pub gpus: Vec<GpuWork>,
    /// Weights and cache that the CPU reads.
    pub cpu_bytes: u64,
    /// How often values of a GPU are waited for, the logits' included.
    pub hops: u64,
}

/// A GPU's part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuWork {
    /// Weights and cache.
    pub bytes: u64,
    pub dispatches: u64,
}

impl Work {
    /// Seconds of a token, by the rates of each GPU and the bytes a second of the CPU.
    pub fn seconds(&self, gpus: &[GpuRates], cpu_rate: f64) -> f64 {
        self.on_gpus(gpus) + self.cpu_bytes as f64 / cpu_rate
    }

    /// Seconds of the GPUs and of waiting for them. The sides work one after the other.
    fn on_gpus(&self, gpus: &[GpuRates]) -> f64 {
        let work = |(work, rates): (&GpuWork, &GpuRates)| {
            work.bytes as f64 / rates.vram_bytes_per_second + work.dispatches as f64 * rates.dispatch_seconds
        };
        let wait = gpus.iter().map(|rates| rates.read_back_seconds).fold(0.0, f64::max);
        self.gpus.iter().zip(gpus).map(work).sum::<f64>() + self.hops as f64 * wait
    }

    /// The CPU's bytes a second, when a token of this work took so many seconds.
    fn cpu_rate(&self, gpus: &[GpuRates], seconds: f64) -> f64 {
        self.cpu_bytes as f64 / (seconds - self.on_gpus(gpus)).max(LEAST_CPU_SHARE * seconds)
    }
}

/// Seconds of a token with `whole` layers. `on_cpu` is the work with all experts on the CPU, which took `seconds`: that
/// says what the CPU really reads a second.
pub fn predict(whole: &Work, gpus_of_whole: &[GpuRates], on_cpu: &Work, gpus: &[GpuRates], seconds: f64) -> f64 {
    whole.seconds(gpus_of_whole, on_cpu.cpu_rate(gpus, seconds))
}

/// How it stands, in seconds a token: `now` is what the guard chose.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum Standing {
    NotTried { now: f64, predicted: f64 },
    Running { now: f64, predicted: f64 },
    Won { now: f64, whole: f64 },
    Lost { now: f64, whole: f64 },
    Failed { predicted: f64 },
}

/// The comparison with whole layers.
#[derive(Clone, Debug, Default)]
pub struct Rival {
    standing: Option<Standing>,
    tokens: usize,
    seconds: Vec<f64>,
}

impl Rival {
    /// How it stands; `None` before the guard has chosen.
    pub fn standing(&self) -> Option<Standing> {
        self.standing
    }

    /// Whether whole layers are being tried.
    pub fn is_running(&self) -> bool {
        matches!(self.standing, Some(Standing::Running { .. }))
    }

    /// The guard has chosen, and whole layers are predicted to take so long: says whether to try them now.
    pub fn consider(&mut self, verdict: &Verdict, predicted: f64) -> bool {
        let now = match (self.standing, verdict) {
            (Some(_), _) | (None, Verdict::Undecided) => return false,
            (None, Verdict::Keeps { with, .. }) => *with,
            (None, Verdict::SwitchedOff { without, .. }) => *without,
        };
        let wins = predicted < now * (1.0 - TOLERANCE);
        self.standing = Some(match wins {
            true => Standing::Running { now, predicted },
            false => Standing::NotTried { now, predicted },
        });
        wins
    }

    /// A token of the trial took so long. At the end of the trial: whether whole layers stay.
    pub fn record(&mut self, seconds: f64) -> Option<bool> {
        let Some(Standing::Running { now, .. }) = self.standing else { return None };
        self.tokens += 1;
        if self.tokens > SKIPPED {
            self.seconds.push(seconds);
        }
        if self.seconds.len() < COUNTED {
            return None;
        }
        let whole = median(&self.seconds);
        let wins = whole < now;
        self.standing = Some(if wins { Standing::Won { now, whole } } else { Standing::Lost { now, whole } });
        Some(wins)
    }

    /// The trial came to nothing.
    pub fn fail(&mut self) {
        if let Some(Standing::Running { predicted, .. }) = self.standing {
            self.standing = Some(Standing::Failed { predicted });
        }
    }
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |seconds: &f64| seconds * 1e3;
        match self {
            Standing::NotTried { now, predicted } => write!(
                f,
                "whole layers on GPUs were not tried: {:.2} ms a token by the measured rates, {:.2} now",
                ms(predicted),
                ms(now)
            ),
            Standing::Running { now, predicted } => write!(
                f,
                "whole layers on GPUs are being tried: {:.2} ms a token by the measured rates, {:.2} before",
                ms(predicted),
                ms(now)
            ),
            Standing::Won { now, whole } => write!(
                f,
                "whole layers on GPUs took the place of the expert cache: {:.2} ms a token, {:.2} before",
                ms(whole),
                ms(now)
            ),
            Standing::Lost { now, whole } => write!(
                f,
                "whole layers on GPUs were tried and given up: {:.2} ms a token, {:.2} before",
                ms(whole),
                ms(now)
            ),
            Standing::Failed { predicted } => write!(
                f,
                "whole layers on GPUs, {:.2} ms a token by the measured rates, could not be set up",
                ms(predicted)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: GpuRates = GpuRates {
        vram_bytes_per_second: 1e12,
        bus_bytes_per_second: 2e10,
        batch_ops_per_second: 1e13,
        dispatch_seconds: 1e-6,
        read_back_seconds: 1e-4,
    };

    fn work(gpu_bytes: u64, dispatches: u64, cpu_bytes: u64, hops: u64) -> Work {
        Work { gpus: vec![GpuWork { bytes: gpu_bytes, dispatches }], cpu_bytes, hops }
    }

    #[test]
    fn whole_layers_are_predicted_from_what_the_cpu_was_seen_to_read() {
        // 1 ms of memory, 0.5 ms of dispatches, 5 ms of waiting: of 26.5 ms the CPU had 20 for its gigabyte.
        let on_cpu = work(1_000_000_000, 500, 1_000_000_000, 50);
        let whole = work(1_500_000_000, 400, 500_000_000, 2);
        let seconds = predict(&whole, &[GPU], &on_cpu, &[GPU], 26.5e-3);
        assert!((seconds - (1.5e-3 + 0.4e-3 + 0.2e-3 + 10e-3)).abs() < 1e-9, "{seconds}");
        // A token that took less than is predicted of the GPUs alone still leaves the CPU a tenth.
        let seconds = predict(&whole, &[GPU], &on_cpu, &[GPU], 5e-3);
        assert!((seconds - (2.1e-3 + 0.25e-3)).abs() < 1e-9, "{seconds}");
    }

    #[test]
    fn what_is_not_predicted_to_win_is_not_tried_and_nothing_is_tried_twice() {
        let keeps = Verdict::Keeps { with: 0.010, without: 0.012 };
        let mut rival = Rival::default();
        assert!(!rival.consider(&Verdict::Undecided, 0.0) && rival.standing().is_none());
        assert!(!rival.consider(&keeps, 0.0099), "within the tolerance");
        assert!(matches!(rival.standing(), Some(Standing::NotTried { .. })));
        assert!(!rival.consider(&keeps, 0.001), "that was the one time");
        let mut failed = Rival::default();
        assert!(failed.consider(&keeps, 0.005) && failed.is_running());
        failed.fail();
        assert!(!failed.is_running() && !failed.consider(&keeps, 0.005));
    }

    #[test]
    fn a_trial_ends_with_the_faster_one() {
        let off = Verdict::SwitchedOff { with: 0.020, without: 0.010 };
        for (whole, wins) in [(0.008, true), (0.011, false)] {
            let mut rival = Rival::default();
            assert!(rival.consider(&off, 0.009), "the guard's choice counts, not the slower arm");
            let mut ended = None;
            for token in 0..SKIPPED + COUNTED {
                assert_eq!(ended, None);
                // The first tokens, and one in between, are slow.
                ended = rival.record(if token < SKIPPED || token == 5 { 1.0 } else { whole });
            }
            assert_eq!(ended, Some(wins));
            let expected = match wins {
                true => Standing::Won { now: 0.010, whole },
                false => Standing::Lost { now: 0.010, whole },
            };
            assert_eq!(rival.standing(), Some(expected));
            assert_eq!(rival.record(0.0), None);
        }
    }
}
