//! Which format each tensor of a model gets.
//!
//! A pure function of the file type, a few facts of the model and the tensor's name and shape, so that a dry run over a
//! header and the work itself cannot differ. It equals llama-quantize's choice for every file type, importance matrix
//! or not. Two differences are meant: a tensor whose format the user names does not move its neighbours' places in a
//! rule that counts tensors, and it gets that format in an F16 or BF16 file too.

use regex_automata::meta::Regex;
use rynd_quant::Format::{self, *};

use super::file_type::{FileType, When};
use super::kind::{self, Kind};

/// What recipes ask of a model.
#[derive(Clone, Debug, Default)]
pub struct ModelFacts {
    pub layers: usize,
    pub experts: usize,
    /// Query heads that share a key-value head; 0 when a model has no such heads.
    pub group: usize,
    /// A grouped-query model of 80 layers, whose v matrices are an eighth of q's (llama 70B, Qwen 72B).
    pub seventy: bool,
    /// The embedding serves as the output matrix.
    pub tied: bool,
    values: Vec<String>, // names of the AttentionV tensors, by layer
    downs: Vec<String>,  // names of the FfnDown tensors, by layer
}

impl ModelFacts {
    /// The facts of a model with these tensors. `heads`: query and key-value heads of the first layer.
    pub fn new<'a>(
        architecture: &str,
        layers: usize,
        experts: usize,
        heads: [usize; 2],
        names: impl Iterator<Item = &'a str>,
    ) -> ModelFacts {
        let mut facts = ModelFacts {
            layers,
            experts,
            group: heads[0].checked_div(heads[1]).unwrap_or(0),
            seventy: layers == 80 && (architecture == "qwen2" || architecture == "llama" && heads[0] != heads[1]),
            tied: true,
            ..ModelFacts::default()
        };
        for name in names {
            match Kind::of(name) {
                Kind::AttentionV => facts.values.push(name.to_owned()),
                Kind::FfnDown => facts.downs.push(name.to_owned()),
                Kind::Output => facts.tied = false,
                _ => {}
            }
        }
        for names in [&mut facts.values, &mut facts.downs] {
            names.sort_by_cached_key(|name| (kind::layer(name), name.clone()));
        }
        facts
    }

    /// Place of a tensor among those of its kind, and their number.
    fn place(&self, kind: Kind, name: &str) -> (usize, usize) {
        let names = if kind == Kind::AttentionV { &self.values } else { &self.downs };
        (names.iter().position(|other| other == name).unwrap_or(0), names.len())
    }
}

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub file_type: &'static FileType,
    /// Everything in the base format, but for what the fields below name.
    pub pure: bool,
    pub output: Option<Format>,
    pub embedding: Option<Format>,
    /// Tensors whose name matches get this format; the first match decides.
    pub overrides: Vec<(Regex, Format)>,
    /// An importance matrix is at hand.
    pub weighted: bool,
}

impl Recipe {
    /// The file type's own recipe.
    pub fn new(file_type: &'static FileType) -> Recipe {
        Recipe { file_type, pure: false, output: None, embedding: None, overrides: vec![], weighted: false }
    }

    /// The format of this tensor in the output; `shape` is in GGUF order, row length first. `now` is its format in the
    /// input, which small and touchy tensors keep.
    pub fn choose(&self, model: &ModelFacts, name: &str, shape: &[u64], now: Format) -> Format {
        if !kind::is_quantizable(name, shape) {
            return now;
        }
        let kind = Kind::of(name);
        if let (Kind::TokenEmbedding, Some(format)) = (kind, self.embedding) {
            return format;
        }
        if let (Kind::Output, Some(format)) = (kind, self.output) {
            return format;
        }
        let base = self.file_type.base;
        let format = match self.overrides.iter().find(|(pattern, _)| pattern.is_match(name)) {
            Some((_, format)) => *format,
            None if self.pure || !base.is_quantized() => base,
            None => self.by_rules(model, kind, name, shape),
        };
        fit(format, shape[0])
    }

    fn by_rules(&self, model: &ModelFacts, kind: Kind, name: &str, shape: &[u64]) -> Format {
        let file_type = self.file_type;
        if kind == Kind::Output || kind == Kind::TokenEmbedding && model.tied {
            let fits = shape[0].is_multiple_of(file_type.base.block_len() as u64);
            return self.output.unwrap_or(if fits { file_type.output } else { Q8_0 });
        }
        let stacked = shape.get(2).is_some_and(|&experts| experts > 1);
        if let (Some(format), false) = (file_type.dense, stacked) {
            return format;
        }
        if kind == Kind::TokenEmbedding {
            return file_type.embedding;
        }
        let special = file_type.special_models;
        if special && model.experts == 8 && matches!(kind, Kind::AttentionV | Kind::AttentionK) {
            return Q8_0;
        }
        let holds = |when: &When| self.holds(*when, model, kind, name);
        let rule = file_type.rules.iter().find(|rule| rule.of == kind && rule.when.iter().all(holds));
        match rule.map_or(file_type.base, |rule| rule.to) {
            Q3_K | Q4_K if special && model.seventy && kind == Kind::AttentionV => Q5_K,
            format => format,
        }
    }

    fn holds(&self, when: When, model: &ModelFacts, kind: Kind, name: &str) -> bool {
        // Values are counted, everything else goes by its layer.
        let (at, of) = match kind {
            Kind::AttentionV => model.place(kind, name),
            _ => (kind::layer(name).unwrap_or(0), model.layers),
        };
        match when {
            When::MoreBits => at < of / 8 || at >= 7 * of / 8 || (at - of / 8) % 3 == 2,
            When::FirstPart(n) => at < of / n,
            When::Middle => at >= of / 8 && at < 7 * of / 8,
            When::FirstOfKind(n) => model.place(kind, name).0 < n,
            When::FirstEighthOfKind => model.place(kind, name).0 < model.layers / 8,
            When::Grouped => model.group >= 4,
            When::GroupedOrExperts => model.group >= 4 || model.experts >= 4,
            When::EightExperts => model.experts == 8,
            When::Weighted => self.weighted,
            When::Unweighted => !self.weighted,
        }
    }
}

/// The nearest format that takes rows of this length: blocks of 256 give way to blocks of 32, and those to F16.
fn fit(format: Format, row: u64) -> Format {
    let takes = |format: Format| row.is_multiple_of(format.block_len() as u64);
    if takes(format) {
        return format;
    }
    let smaller = match format {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS => IQ4_NL,
        Q2_K | Q3_K | TQ1_0 | TQ2_0 => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        F32 | F16 | BF16 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q8_K | IQ4_NL | MXFP4 | NVFP4 => F16,
    };
    if takes(smaller) { smaller } else { F16 }
}
