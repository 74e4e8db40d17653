//! The GPU flags, and the line that tells what became of them.

use std::io::Write;
use std::path::PathBuf;

use super::numbers;
use super::terminal;
use crate::catalog::Home;
use crate::engine::{Engine, ExpertChoice, ExpertOptions, GpuChoice, GpuOptions};
use crate::sizes;

/// Which GPUs, and how much of them.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "GPU options")]
pub struct GpuFlags {
    /// GPUs to use: auto, off, or numbers of 'rynd devices' (0 or 0,1) [default: auto]
    #[arg(long, value_name = "GPUS", value_parser = choice)]
    gpu: Option<GpuChoice>,
    /// Layers on GPUs, the head counted as one: auto (as many as fit), or a number
    #[arg(long, value_name = "N", default_value = "auto", value_parser = layers)]
    gpu_layers: Layers,
    /// Memory to use of each GPU, such as 8G (10^9 bytes) or 8GiB (2^30) [default: nine tenths of what it has]
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse_some)]
    gpu_memory: Option<u64>,
    /// Experts of a mixture: auto (those picked most go to GPUs where not all fit, unless that is slower),
    /// always, off (whole layers), or cpu
    #[arg(long, value_name = "WHERE", default_value = "auto")]
    experts: ExpertChoice,
    /// Keep experts on the CPU: --experts cpu
    #[arg(long, hide = true)]
    cpu_experts: bool,
    /// Start with the experts that this file (a profile or a trace) says are picked most [default: what earlier runs learned]
    #[arg(long, value_name = "FILE")]
    experts_profile: Option<PathBuf>,
    /// Keep the profile's hottest experts in this part of the slots for good, as in --experts-profile code.json
    /// --experts-pin=30; the other slots follow the text [without PERCENT: 50]
    #[arg(
        long,
        value_name = "PERCENT",
        requires = "experts_profile",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "50",
        value_parser = percent
    )]
    experts_pin: Option<f64>,
}

/// Layers on GPUs; `None` is as many as fit.
#[derive(Clone, Copy, Debug)]
struct Layers(Option<usize>);

impl GpuFlags {
    /// As the engine wants it. The reference that `exact` computes is the CPU's, unless a GPU is named.
    pub fn options(&self, exact: bool) -> GpuOptions {
        let choice = match &self.gpu {
            None | Some(GpuChoice::Auto) if exact => GpuChoice::Off,
            None => GpuChoice::Auto,
            Some(choice) => choice.clone(),
        };
        GpuOptions {
            choice,
            asked: self.gpu.is_some(),
            layers: self.gpu_layers.0,
            memory: self.gpu_memory,
            experts_on_cpu: self.cpu_experts,
            ..GpuOptions::default()
        }
    }
}

impl GpuFlags {
    /// How experts are placed.
    pub fn expert_options(&self) -> ExpertOptions {
        ExpertOptions {
            choice: if self.cpu_experts { ExpertChoice::Cpu } else { self.experts },
            // Without a home nothing is kept.
            heat: Home::from_env().ok().map(|home| home.cache.join("experts")),
            profile: self.experts_profile.clone(),
            pin: self.experts_pin,
            ..ExpertOptions::default()
        }
    }
}

/// Tells the user what the engine did in place of what it was asked for.
pub fn notice(line: &str) {
    // A lost notice is no reason to fail.
    let _ = writeln!(terminal::stderr(), "rynd: {line}");
}

/// Tells where a model that uses GPUs lies.
pub fn tell(engine: &Engine) {
    for share in engine.gpu_shares() {
        let budget = share.budget.map_or(String::new(), |bytes| format!(" of {}", numbers::bytes(bytes)));
        notice(&format!(
            "GPU {} ({}): {} of {} layers, {}{budget}",
            share.index,
            share.name,
            share.layers,
            engine.plan().layers + 1,
            numbers::bytes(share.bytes)
        ));
    }
    if let Some(report) = engine.expert_report() {
        notice(&report.to_string());
    }
}

fn choice(text: &str) -> Result<GpuChoice, String> {
    match text {
        "auto" => Ok(GpuChoice::Auto),
        "off" => Ok(GpuChoice::Off),
        list => {
            let number =
                |n: &str| n.trim().parse::<usize>().map_err(|_| format!("'{n}' is neither a number, auto nor off"));
            let indices: Vec<usize> = list.split(',').map(number).collect::<Result<_, _>>()?;
            match indices.iter().enumerate().find(|(i, index)| indices[..*i].contains(index)) {
                Some((_, twice)) => Err(format!("GPU {twice} is named twice")),
                None => Ok(GpuChoice::These(indices)),
            }
        }
    }
}

/// "30" as 0.3.
fn percent(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent / 100.0),
        _ => Err(format!("'{text}' is no percentage above 0 and up to 100")),
    }
}

fn layers(text: &str) -> Result<Layers, String> {
    match text {
        "auto" => Ok(Layers(None)),
        n => n.parse().map(|n| Layers(Some(n))).map_err(|_| "give auto or a number of layers".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_auto_off_or_numbers() {
        assert_eq!(choice("auto"), Ok(GpuChoice::Auto));
        assert_eq!(choice("off"), Ok(GpuChoice::Off));
        assert_eq!(choice("0, 2"), Ok(GpuChoice::These(vec![0, 2])));
        assert!(choice("0,0").is_err());
        assert!(choice("all").is_err());
    }
}
