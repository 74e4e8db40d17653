//! How far a model's predictions are from a reference's: Kullback-Leibler divergence and what goes with it.
//!
//! The figures and their error bars are those that llama-perplexity reports, computed from one record a scored token.
//! An error bar is one standard deviation of the mean, tokens taken as independent.

use super::reference_logits::{CodedRow, log_sum_exp};

/// One scored token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// `-ln p` of the token that really followed, by the model and by the reference.
    pub nll: f32,
    pub base_nll: f32,
    /// Divergence of the model's distribution from the reference's, in nats.
    pub kld: f64,
    pub same_top: bool,
}

/// Log-probabilities of the reference below this add nothing to a divergence.
const NEGLIGIBLE: f32 = -16.0;

/// Scores one row of logits (vocab) against the reference's.
pub fn score(logits: &[f32], base: CodedRow, target: u32) -> TokenScore {
    let norm = log_sum_exp(logits);
    let target = target as usize;
    let mut kld = 0.0_f64;
    let (mut top, mut base_top) = (0, 0);
    for (i, (&logit, &code)) in logits.iter().zip(base.codes).enumerate() {
        if logit > logits[top] {
            top = i;
        }
        if code > base.codes[base_top] {
            base_top = i;
        }
        let base_log_p = base.least + base.step * f32::from(code);
        if base_log_p > NEGLIGIBLE {
            kld += f64::from(base_log_p.exp() * (base_log_p - logit + norm));
        }
    }
    TokenScore {
        nll: norm - logits[target],
        base_nll: -(base.least + base.step * f32::from(base.codes[target])),
        kld,
        same_top: top == base_top,
    }
}

/// A figure and its error bar.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Estimate {
    pub value: f64,
    pub error: f64,
}

impl std::fmt::Display for Estimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = f.precision().unwrap_or(6);
        write!(f, "{:.digits$} +- {:.digits$}", self.value, self.error)
    }
}

/// Where a distribution of values lies.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Spread {
    pub mean: Estimate,
    pub least: f64,
    pub most: f64,
    /// (percent, value), rising.
    pub percentiles: Vec<(f64, f64)>,
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Report {
    pub tokens: usize,
    pub perplexity: Estimate,
    pub base_perplexity: Estimate,
    /// Correlation of the two models' `ln p`.
    pub correlation: f64,
    pub ln_ratio: Estimate,
    pub ratio: Estimate,
    pub difference: Estimate,
    /// Nats.
    pub kld: Spread,
    /// Probability of the right token, model minus reference, as fractions.
    pub delta_p: Spread,
    pub rms_delta_p: Estimate,
    /// Share of tokens where both models like the same token best.
    pub same_top: Estimate,
}

const PERCENTS: [f64; 11] = [0.1, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9];

impl Report {
    /// The figures of these tokens; `None` without any.
    pub fn new(scores: &[TokenScore]) -> Option<Report> {
        if scores.is_empty() {
            return None;
        }
        let of = |f: fn(&TokenScore) -> f64| scores.iter().map(f).collect::<Vec<f64>>();
        let nll = of(|s| f64::from(s.nll));
        let base_nll = of(|s| f64::from(s.base_nll));
        let delta_p = of(|s| f64::from((-s.nll).exp() - (-s.base_nll).exp()));
        let (ln, base_ln) = (mean(&nll), mean(&base_nll));
        let covariance = covariance(&nll, &base_nll);
        let ln_ratio = difference(ln, base_ln, covariance);
        let perplexity = exponential(ln);
        let base_perplexity = exponential(base_ln);
        let squares: Vec<f64> = delta_p.iter().map(|d| d * d).collect();
        let mean_square = mean(&squares);
        let rms = mean_square.value.sqrt();
        let same = of(|s| f64::from(u8::from(s.same_top)));
        let share = same.iter().sum::<f64>() / same.len() as f64;
        Some(Report {
            tokens: scores.len(),
            perplexity,
            base_perplexity,
            correlation: if ln.error * base_ln.error > 0.0 { covariance / (ln.error * base_ln.error) } else { 0.0 },
            ln_ratio,
            ratio: exponential(ln_ratio),
            difference: difference(perplexity, base_perplexity, perplexity.value * base_perplexity.value * covariance),
            kld: spread(of(|s| s.kld)),
            delta_p: spread(delta_p),
            rms_delta_p: Estimate { value: rms, error: if rms > 0.0 { 0.5 / rms * mean_square.error } else { 0.0 } },
            same_top: Estimate {
                value: share,
                error: (share * (1.0 - share) / (scores.len() - 1).max(1) as f64).sqrt(),
            },
        })
    }
}

/// Mean and its standard deviation.
fn mean(values: &[f64]) -> Estimate {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    Estimate { value: mean, error: if values.len() > 1 { (variance / (n - 1.0)).sqrt() } else { 0.0 } }
}

/// Covariance of the means.
fn covariance(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let sum: f64 = a.iter().zip(b).map(|(a, b)| (a - mean_a) * (b - mean_b)).sum();
    if a.len() > 1 { sum / n / (n - 1.0) } else { 0.0 }
}

fn difference(a: Estimate, b: Estimate, covariance: f64) -> Estimate {
    let variance = a.error.powi(2) + b.error.powi(2) - 2.0 * covariance;
    Estimate { value: a.value - b.value, error: variance.max(0.0).sqrt() }
}

fn exponential(x: Estimate) -> Estimate {
    Estimate { value: x.value.exp(), error: x.value.exp() * x.error }
}

fn spread(mut values: Vec<f64>) -> Spread {
    let mean = mean(&values);
    values.sort_unstable_by(f64::total_cmp);
    let percentile = |percent: f64| {
        let at = percent / 100.0 * (values.len() - 1) as f64;
        let (below, above) = (values[at as usize], values[at.ceil() as usize]);
        (percent, below + (above - below) * at.fract())
    };
    Spread {
        mean,
        least: values[0],
        most: values[values.len() - 1],
        percentiles: PERCENTS.iter().map(|&percent| percentile(percent)).collect(),
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = |e: Estimate| Estimate { value: 100.0 * e.value, error: 100.0 * e.error };
        writeln!(f, "tokens scored         {}", self.tokens)?;
        writeln!(f, "perplexity            {:.6}", self.perplexity)?;
        writeln!(f, "  of the reference    {:.6}", self.base_perplexity)?;
        writeln!(f, "  ratio               {:.6}", self.ratio)?;
        writeln!(f, "  ln(ratio)           {:.6}", self.ln_ratio)?;
        writeln!(f, "  difference          {:.6}", self.difference)?;
        writeln!(f, "  correlation of ln p {:.2} %", 100.0 * self.correlation)?;
        writeln!(f, "KL divergence         {:.6}", self.kld.mean)?;
        for (percent, value) in self.kld.percentiles.iter().rev() {
            writeln!(f, "  {:<19} {value:.6}", format!("{percent} %"))?;
        }
        writeln!(f, "  largest             {:.6}", self.kld.most)?;
        writeln!(f, "delta p               {:.3} %", percent(self.delta_p.mean))?;
        for (percent, value) in self.delta_p.percentiles.iter().rev() {
            writeln!(f, "  {:<19} {:.3} %", format!("{percent} %"), 100.0 * value)?;
        }
        writeln!(f, "RMS delta p           {:.3} %", percent(self.rms_delta_p))?;
        write!(f, "same top token        {:.3} %", percent(self.same_top))
    }
}
