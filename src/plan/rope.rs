//! Rotary position embeddings as tables of inverse frequencies.
//!
//! Every scaling scheme here (linear, YaRN, per-dimension factors) only changes the angle a position turns each pair
//! of dimensions by, and that angle stays proportional to the position. So each folds into one frequency per pair at
//! load, and the executors know nothing of schemes.

/// Which two values of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// `(i, i + dims / 2)`: NeoX, Qwen, Gemma.
    Halves,
    /// `(2 i, 2 i + 1)`: llama files, whose q and k rows are permuted for it.
    Pairs,
}

/// How the frequencies are stretched beyond the trained context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Positions divided by the factor (Chen et al. 2023).
    Linear {
        factor: f32,
    },
    /// YaRN (Peng et al. 2023, section 3.4): high frequencies kept, low ones interpolated, a ramp between.
    Yarn {
        factor: f32,
        original_context: f32,
        beta_fast: f32,
        beta_slow: f32,
        /// Multiplies cos and sin; `None` is the paper's `0.1 ln(factor) + 1`.
        attention_factor: Option<f32>,
    },
}

/// A rotary embedding, ready to use: `angle = position * inv_freq[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    pub layout: RopeLayout,
    pub inv_freq: Vec<f32>, // (dims / 2)
    /// Multiplies cos and sin.
    pub magnitude: f32,
}

impl RopeTable {
    /// Frequencies `base^(-2 i / dims)`, scaled; `factors` (dims / 2) divide them (llama3's `rope_freqs.weight`).
    pub fn new(layout: RopeLayout, dims: usize, base: f32, scaling: RopeScaling, factors: Option<&[f32]>) -> RopeTable {
        let mut inv_freq: Vec<f32> =
            (0..dims / 2).map(|i| f64::from(base).powf(-((2 * i) as f64) / dims as f64) as f32).collect();
        let mut magnitude = 1.0;
        match scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => inv_freq.iter_mut().for_each(|f| *f /= factor),
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
                let low = correction_dim(beta_fast, dims, base, original_context).floor().max(0.0);
                let high = correction_dim(beta_slow, dims, base, original_context).ceil().min(dims as f64 - 1.0);
                let span = (high - low).max(0.001);
                for (i, f) in inv_freq.iter_mut().enumerate() {
                    let interpolated = ((i as f64 - low) / span).clamp(0.0, 1.0);
                    let kept = 1.0 - interpolated;
                    *f = (f64::from(*f) * (kept + interpolated / f64::from(factor))) as f32;
                }
                magnitude = attention_factor.unwrap_or(if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 });
            }
        }
        if let Some(factors) = factors {
            inv_freq.iter_mut().zip(factors).for_each(|(f, factor)| *f /= factor);
        }
        RopeTable { layout, inv_freq, magnitude }
    }
}

/// The dimension whose wavelength makes `rotations` turns over the original context (YaRN, equation 17 solved for d).
fn correction_dim(rotations: f32, dims: usize, base: f32, context: f32) -> f64 {
    let turns = f64::from(context) / (f64::from(rotations) * 2.0 * std::f64::consts::PI);
    dims as f64 * turns.ln() / (2.0 * f64::from(base).ln())
}
