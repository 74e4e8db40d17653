//! `rynd experts show`: what traces say about a model, in the terminal or as a page.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use super::{html, read_trace};
use crate::catalog::Home;
use crate::commands::terminal;
use crate::engine;
use crate::experts::{Divergence, Heat, LayerSummary, Specialist, Summary, Trace, divergence, specialists};
use crate::files;
use crate::gguf::Gguf;

/// Shades of the heat map where colours are not wanted.
const SHADES: &[u8] = b" .:-=+*#%@";
/// Columns in front of the heat map.
const MARGIN: usize = 6;

/// Show how a model's experts are used
///
/// One trace: a heat map of layers and experts, how uneven the use is, how soon experts return, how much neighbouring
/// tokens share (against the same tokens shuffled), and how many experts are new to a token. Several, as LABEL=TRACE: which
/// experts belong to which kind of text, with the divergence of each layer against what chance gives. A model: what was
/// learned of its experts while it ran with experts paged to GPUs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd experts show rust.trace.gz
  rynd experts show rust.trace.gz --sort
  rynd experts show model.gguf
  rynd experts show rust=rust.trace.gz python=python.trace.gz prose=prose.trace.gz
  rynd experts show rust=rust.trace.gz python=python.trace.gz --html experts.html")]
pub struct Arguments {
    /// Traces, with a label each where there are several; or a model
    #[arg(value_name = "[LABEL=]TRACE|MODEL", required = true)]
    traces: Vec<String>,
    /// In the heat map, order each layer's experts by use
    #[arg(long)]
    sort: bool,
    /// Specialists to list for each trace
    #[arg(long, value_name = "N", default_value = "12")]
    top: usize,
    /// Write one self-contained page with the plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A trace and everything that is shown of it.
pub(super) struct Labelled {
    pub label: String,
    pub trace: Trace,
    pub summary: Summary,
}

/// What tells several traces apart.
pub(super) struct Comparison {
    /// (first, second, by layer).
    pub pairs: Vec<(usize, usize, Vec<Divergence>)>,
    pub specialists: Vec<Vec<Specialist>>, // by trace
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let [path] = &arguments.traces[..]
        && is_model(Path::new(path))
    {
        return show_heat(Path::new(path), arguments);
    }
    let labelled = arguments.traces.iter().map(|argument| read(argument)).collect::<Result<Vec<_>>>()?;
    let first = &labelled[0].trace.header;
    if let Some(other) = labelled
        .iter()
        .map(|l| &l.trace.header)
        .find(|h| (h.experts, h.layers.len()) != (first.experts, first.layers.len()))
    {
        bail!("the traces are of different models, '{}' and '{}'; compare traces of one", first.model, other.model);
    }
    let comparison = compare(&labelled, arguments.top);
    if let Some(path) = &arguments.html {
        files::write(path, html::page(&labelled, &comparison))
            .with_context(|| format!("can not write {}", path.display()))?;
    }
    let mut out = terminal::stdout();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &as_json(&labelled, &comparison))?;
        writeln!(out)?;
    } else if arguments.html.is_none() {
        for one in &labelled {
            print(&mut out, one, arguments.sort, labelled.len() > 1)?;
        }
        print_comparison(&mut out, &labelled, &comparison)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the file is a model.
fn is_model(path: &Path) -> bool {
    let mut magic = [0; 4];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"GGUF"
}

/// What earlier runs learned of a model's experts.
fn show_heat(path: &Path, arguments: &Arguments) -> Result<ExitCode> {
    let gguf = Gguf::open(path)?;
    let Some(header) = engine::header_of(&gguf)? else { bail!("{}: the model has no experts", path.display()) };
    let file = Home::from_env()?.cache.join("experts").join(format!("{}.json", header.model_hash));
    let Ok(bytes) = std::fs::read(&file) else {
        bail!(
            "{}: nothing was learned about its experts yet; run it with a GPU that does not hold them all, or record a \
             trace with 'rynd experts record'",
            path.display()
        )
    };
    let heat = Heat::parse(&bytes, &header.model_hash, &header.grid()).with_context(|| file.display().to_string())?;
    let count = |n: &f32| n.round() as u32;
    let counts = heat.picks.iter().map(|layer| layer.iter().map(count).collect::<Vec<u32>>());
    let layers: Vec<LayerSummary> =
        header.layers.iter().zip(counts).map(|(info, counts)| LayerSummary::of_counts(info.layer, counts)).collect();
    let mut out = terminal::stdout();
    if arguments.json {
        let value = serde_json::json!({ "model": header.model, "tokens": heat.tokens.round(), "layers": layers });
        serde_json::to_writer_pretty(&mut out, &value)?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{}: learned from {:.0} tokens, the later ones counting more\n", header.model, heat.tokens)?;
    heat_map(&mut out, &layers, heat.tokens * header.used as f64 / header.experts as f64, arguments.sort)?;
    writeln!(out, "\n{:>5} {:>9} {:>9} {:>9} {:>6}", "layer", "top 10%", "top 25%", "as many", "gini")?;
    for l in &layers {
        let (tenth, quarter) = (100.0 * l.top_tenth, 100.0 * l.top_quarter);
        writeln!(out, "{:>5} {tenth:>8.1}% {quarter:>8.1}% {:>9.1} {:>6.2}", l.layer, l.effective, l.gini)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read(argument: &str) -> Result<Labelled> {
    // A file whose name has a '=' is still a file.
    let (label, path) = match argument.split_once('=') {
        Some((label, path)) if !Path::new(argument).is_file() => (label.to_owned(), Path::new(path)),
        _ => (stem(Path::new(argument)), Path::new(argument)),
    };
    let trace = read_trace(path)?;
    let summary = Summary::new(&trace);
    if summary.tokens == 0 {
        bail!("{}: the trace has no generated tokens", path.display());
    }
    Ok(Labelled { label, trace, summary })
}

fn stem(path: &Path) -> String {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    name.split('.').next().unwrap_or_default().to_owned()
}

fn compare(labelled: &[Labelled], top: usize) -> Comparison {
    let mut pairs = vec![];
    for a in 0..labelled.len() {
        for b in a + 1..labelled.len() {
            pairs.push((a, b, divergence(&labelled[a].trace, &labelled[b].trace)));
        }
    }
    let traces: Vec<&Trace> = labelled.iter().map(|l| &l.trace).collect();
    let specialists = if labelled.len() > 1 { specialists(&traces, top) } else { vec![] };
    Comparison { pairs, specialists }
}

fn print(out: &mut impl Write, one: &Labelled, sort: bool, several: bool) -> Result<()> {
    let (s, h) = (&one.summary, &one.trace.header);
    let label = if several { format!("{}: ", one.label) } else { String::new() };
    writeln!(
        out,
        "{label}{}, {} generated tokens, {} layers of {} experts, {} used\n",
        h.model,
        s.tokens,
        s.layers.len(),
        s.experts,
        s.used
    )?;
    heat_map(out, &s.layers, (s.tokens * s.used) as f64 / s.experts as f64, sort)?;
    writeln!(
        out,
        "\n{:>5} {:>9} {:>9} {:>9} {:>6} {:>9} {:>9}",
        "layer", "top 10%", "top 25%", "as many", "gini", "new/tok", "unseen"
    )?;
    for layer in &s.layers {
        writeln!(
            out,
            "{:>5} {:>8.1}% {:>8.1}% {:>9.1} {:>6.2} {:>9.2} {:>9.2}",
            layer.layer,
            100.0 * layer.top_tenth,
            100.0 * layer.top_quarter,
            layer.effective,
            layer.gini,
            layer.new_a_token,
            layer.unseen_a_token
        )?;
    }
    writeln!(
        out,
        "{:>5} {:>8.1}% {:>8.1}% {:>9.1} {:>6.2} {:>9.2} {:>9.2}",
        "mean",
        100.0 * s.mean(|l| l.top_tenth),
        100.0 * s.mean(|l| l.top_quarter),
        s.mean(|l| l.effective),
        s.mean(|l| l.gini),
        s.mean(|l| l.new_a_token),
        s.mean(|l| l.unseen_a_token)
    )?;
    writeln!(
        out,
        "\nshare of the picks that the most used experts have; how many experts used alike would be as varied; picks of\n\
         a token that the one before lacked, and that none before had (second half)"
    )?;
    writeln!(out, "\nan expert returns after {} tokens (median; nine of ten within {})", s.reuse.median, s.reuse.p90)?;
    for (i, n) in s.reuse.counts.iter().enumerate() {
        let part = *n as f64 / s.reuse.counts.iter().sum::<u64>().max(1) as f64;
        let range = if i == 0 { "1".to_owned() } else { format!("{}-{}", 1 << i, (2 << i) - 1) };
        writeln!(out, "{range:>9} {:>5.1}% {}", 100.0 * part, "#".repeat((part * 50.0).round() as usize))?;
    }
    writeln!(
        out,
        "\n{:>9} {:>9} {:>9}   picks that were also picked so many tokens ago",
        "lag", "measured", "shuffled"
    )?;
    for (lag, measured, shuffled) in &s.overlap {
        writeln!(out, "{lag:>9} {:>8.1}% {:>8.1}%", 100.0 * measured, 100.0 * shuffled)?;
    }
    writeln!(out)?;
    Ok(())
}

/// One line a layer, one column an expert (or several, of which the most used is shown).
fn heat_map(out: &mut impl Write, layers: &[LayerSummary], even: f64, sort: bool) -> Result<()> {
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let width = crossterm::terminal::size().map_or(80, |(columns, _)| usize::from(columns)).max(MARGIN + 20) - MARGIN;
    let experts = layers.first().map_or(1, |layer| layer.counts.len());
    let width = if std::io::stdout().is_terminal() { width } else { experts.min(128) };
    let per_column = experts.div_ceil(width).max(1);
    // A column twice as bright as another is used twice as much; white is eight times the even share and more.
    for layer in layers {
        let mut counts = layer.counts.clone();
        if sort {
            counts.sort_unstable_by(|a, b| b.cmp(a));
        }
        write!(out, "{:>4}  ", layer.layer)?;
        let mut last = None;
        for column in counts.chunks(per_column) {
            let most = column.iter().copied().max().unwrap_or(0);
            let heat = (f64::from(most) / even / 8.0).min(1.0).sqrt();
            if colours {
                // The ramp of 24 greys would hide what is small: a ramp from black over red and yellow to white.
                let colour = ramp(heat);
                // Painted past what cleans the text: the lock is the same, so is the order.
                let mut screen = std::io::stdout().lock();
                if last != Some(colour) {
                    write!(screen, "\x1b[48;5;{colour}m")?;
                    last = Some(colour);
                }
                write!(screen, " ")?;
            } else {
                let shade = SHADES[(heat * (SHADES.len() - 1) as f64).round() as usize];
                write!(out, "{}", char::from(shade))?;
            }
        }
        if colours {
            write!(std::io::stdout().lock(), "\x1b[0m")?;
        }
        writeln!(out)?;
    }
    let of = if per_column > 1 { format!(" (a column is the most used of {per_column})") } else { String::new() };
    let order = if sort { "experts by use" } else { "experts by number" };
    writeln!(out, "      layers down, {order} across{of}; the brightest have 8 times the even share or more")?;
    Ok(())
}

/// A colour of the 256-colour palette: black, blue, purple, red, orange, yellow, white.
fn ramp(heat: f64) -> u8 {
    const RAMP: [u8; 14] = [16, 17, 18, 54, 90, 126, 161, 196, 202, 208, 214, 220, 228, 231];
    RAMP[(heat * (RAMP.len() - 1) as f64).round() as usize]
}

fn print_comparison(out: &mut impl Write, labelled: &[Labelled], comparison: &Comparison) -> Result<()> {
    if comparison.pairs.is_empty() {
        return Ok(());
    }
    writeln!(out, "divergence of the use of experts, bits (by chance)\n")?;
    let names: Vec<String> =
        comparison.pairs.iter().map(|(a, b, _)| format!("{} / {}", labelled[*a].label, labelled[*b].label)).collect();
    let widths: Vec<usize> = names.iter().map(|name| name.len().max(15)).collect();
    write!(out, "{:>5}", "layer")?;
    for (name, width) in names.iter().zip(&widths) {
        write!(out, "  {name:>width$}")?;
    }
    writeln!(out)?;
    let cell = |bits: f64, chance: f64| format!("{bits:.3} ({chance:.3})");
    for at in 0..comparison.pairs[0].2.len() {
        write!(out, "{:>5}", comparison.pairs[0].2[at].layer)?;
        for ((.., layers), width) in comparison.pairs.iter().zip(&widths) {
            write!(out, "  {:>width$}", cell(layers[at].bits, layers[at].by_chance))?;
        }
        writeln!(out)?;
    }
    write!(out, "{:>5}", "mean")?;
    for ((.., layers), width) in comparison.pairs.iter().zip(&widths) {
        let mean = |f: fn(&Divergence) -> f64| layers.iter().map(f).sum::<f64>() / layers.len().max(1) as f64;
        write!(out, "  {:>width$}", cell(mean(|d| d.bits), mean(|d| d.by_chance)))?;
    }
    writeln!(out)?;
    for (one, list) in labelled.iter().zip(&comparison.specialists) {
        writeln!(out, "\n{}'s own experts (tokens that pick them here, and in the other texts)", one.label)?;
        for s in list {
            let (here, elsewhere) = (100.0 * s.here, 100.0 * s.elsewhere);
            writeln!(out, "  layer {:>2} expert {:>3}  {here:>5.1}%  {elsewhere:>5.1}%", s.layer, s.expert)?;
        }
    }
    Ok(())
}

pub(super) fn as_json(labelled: &[Labelled], comparison: &Comparison) -> serde_json::Value {
    let traces: Vec<_> = labelled
        .iter()
        .map(|one| serde_json::json!({ "label": one.label, "model": one.trace.header.model, "summary": one.summary }))
        .collect();
    let pairs: Vec<_> = comparison
        .pairs
        .iter()
        .map(|(a, b, layers)| serde_json::json!({ "first": a, "second": b, "layers": layers }))
        .collect();
    serde_json::json!({ "traces": traces, "divergence": pairs, "specialists": comparison.specialists })
}
