//! File types: a base format, and where the recipe departs from it.
//!
//! The recipes are llama-quantize's, so that a name means the same file everywhere: which parts of a model get more
//! bits was found there by years of measuring. They are data. A rule names a kind of tensor, conditions that must all
//! hold, and the format; the first that fits decides. A format that a row's length does not allow is replaced after
//! that (`recipe.rs`).

use rynd_quant::Format::{self, *};

use self::When::*;
use super::kind::Kind::{self, *};

/// A condition of a rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    /// The first and last eighth of the layers, and every third between.
    MoreBits,
    /// The first n-th part of the layers.
    FirstPart(usize),
    /// Neither the first nor the last eighth of the layers.
    Middle,
    /// Among the first n tensors of its kind.
    FirstOfKind(usize),
    /// Fewer of its kind go before it than an eighth of the layers.
    FirstEighthOfKind,
    /// At least four query heads share a key-value head: k and v are small then, and matter more.
    Grouped,
    /// At least four query heads share one, or there are four experts or more.
    GroupedOrExperts,
    /// Exactly eight experts: attention is a small part of the whole.
    EightExperts,
    /// An importance matrix was given.
    Weighted,
    /// None was.
    Unweighted,
}

/// `of` tensors, when all conditions hold, get format `to`.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub of: Kind,
    pub when: &'static [When],
    pub to: Format,
}

const fn rule(of: Kind, when: &'static [When], to: Format) -> Rule {
    Rule { of, when, to }
}

/// One of the names that `rynd quantize` takes as TYPE.
#[derive(Debug)]
pub struct FileType {
    pub name: &'static str,
    /// `general.file_type`.
    pub id: u32,
    /// What no rule names; in a pure file, everything.
    pub base: Format,
    /// The output matrix, or the embedding that serves as one.
    pub output: Format,
    /// The embedding of a model that has an output matrix as well.
    pub embedding: Format,
    /// Whatever is no stack of experts, where that differs.
    pub dense: Option<Format>,
    pub rules: &'static [Rule],
    /// Whether the models that `recipe.rs` treats apart (eight experts, 70B) are treated apart here too.
    pub special_models: bool,
}

/// Two names for one file type.
const ALIASES: [(&str, &str); 4] = [("Q3_K", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("Q5_K", "Q5_K_M"), ("MXFP4", "MXFP4_MOE")];

impl FileType {
    /// The file type of this name, case-insensitively.
    pub fn from_name(name: &str) -> Option<&'static FileType> {
        let name = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name)).map_or(name, |(_, name)| name);
        FILE_TYPES.iter().find(|file_type| file_type.name.eq_ignore_ascii_case(name))
    }

    /// All names, for help and errors.
    pub fn names() -> String {
        FILE_TYPES.iter().map(|file_type| file_type.name).collect::<Vec<_>>().join(", ")
    }

    const fn new(name: &'static str, id: u32, base: Format, output: Format, rules: &'static [Rule]) -> FileType {
        FileType { name, id, base, output, embedding: base, dense: None, rules, special_models: true }
    }

    /// 2-bit files: 5 bits for the output, and rules of their own for special models.
    const fn tiny(name: &'static str, id: u32, base: Format, embedding: Format, rules: &'static [Rule]) -> FileType {
        FileType { embedding, special_models: false, ..FileType::new(name, id, base, Q5_K, rules) }
    }

    /// Whether a matrix in this format is worthless here without an importance matrix.
    pub fn needs_importance(&self, format: Format) -> bool {
        matches!(format, IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ1_S | IQ1_M) || format == Q2_K && self.id == Q2_K_S_ID
    }
}

const Q2_K_S_ID: u32 = 21;

/// In the order that help and errors list them.
#[rustfmt::skip]
pub static FILE_TYPES: [FileType; 29] = [
    FileType::new("F32", 0, F32, F32, &[]),
    FileType::new("F16", 1, F16, F16, &[]),
    FileType::new("BF16", 32, BF16, BF16, &[]),
    FileType::new("Q8_0", 7, Q8_0, Q8_0, &[]),
    FileType::new("Q6_K", 18, Q6_K, Q6_K, &[]),
    FileType::new("Q5_K_M", 17, Q5_K, Q6_K, &[
        rule(AttentionV, &[MoreBits], Q6_K),
        rule(FfnDown, &[MoreBits], Q6_K),
    ]),
    FileType::new("Q5_K_S", 16, Q5_K, Q6_K, &[]),
    FileType::new("Q4_K_M", 15, Q4_K, Q6_K, &[
        rule(AttentionV, &[MoreBits], Q6_K),
        rule(FfnDown, &[MoreBits], Q6_K),
        rule(AttentionOutput, &[EightExperts], Q5_K),
    ]),
    FileType::new("Q4_K_S", 14, Q4_K, Q6_K, &[
        rule(AttentionV, &[FirstOfKind(4)], Q5_K),
        rule(FfnDown, &[FirstPart(8)], Q5_K),
        rule(AttentionOutput, &[EightExperts], Q5_K),
    ]),
    FileType::new("Q3_K_L", 13, Q3_K, Q6_K, &[
        rule(AttentionV, &[], Q5_K),
        rule(FfnDown, &[], Q5_K),
        rule(AttentionOutput, &[EightExperts], Q3_K),
        rule(AttentionOutput, &[], Q5_K),
    ]),
    FileType::new("Q3_K_M", 12, Q3_K, Q6_K, &[
        rule(AttentionV, &[FirstOfKind(2)], Q5_K),
        rule(AttentionV, &[], Q4_K),
        rule(FfnDown, &[FirstPart(16)], Q5_K),
        rule(FfnDown, &[], Q4_K),
        rule(AttentionOutput, &[EightExperts], Q5_K),
        rule(AttentionOutput, &[], Q4_K),
    ]),
    FileType::new("Q3_K_S", 11, Q3_K, Q6_K, &[rule(AttentionOutput, &[EightExperts], Q5_K)]),
    FileType::new("Q2_K", 10, Q2_K, Q6_K, &[
        rule(AttentionV, &[Grouped], Q4_K),
        rule(AttentionV, &[], Q3_K),
        rule(FfnDown, &[], Q3_K),
        rule(AttentionOutput, &[EightExperts], Q5_K),
        rule(AttentionOutput, &[], Q3_K),
    ]),
    FileType::new("Q2_K_S", Q2_K_S_ID, Q2_K, Q6_K, &[
        rule(AttentionV, &[Grouped], Q4_K),
        rule(FfnDown, &[FirstPart(8)], Q4_K),
    ]),
    FileType::new("Q5_1", 9, Q5_1, Q6_K, &[]),
    FileType::new("Q5_0", 8, Q5_0, Q6_K, &[rule(FfnDown, &[Weighted, FirstPart(8)], Q5_1)]),
    FileType::new("Q4_1", 3, Q4_1, Q6_K, &[]),
    FileType::new("Q4_0", 2, Q4_0, Q6_K, &[rule(FfnDown, &[Weighted, FirstPart(8)], Q4_1)]),
    FileType::new("IQ4_NL", 25, IQ4_NL, Q6_K, IQ4_RULES),
    FileType::new("IQ4_XS", 30, IQ4_XS, Q6_K, IQ4_RULES),
    FileType::new("IQ3_M", 27, IQ3_S, Q6_K, &[
        rule(AttentionV, &[], Q4_K),
        rule(FfnDown, &[FirstPart(8)], Q4_K),
        rule(FfnDown, &[EightExperts, MoreBits], Q4_K),
        rule(AttentionOutput, &[EightExperts], Q5_K),
        rule(AttentionOutput, &[], Q4_K),
    ]),
    FileType::new("IQ3_S", 26, IQ3_S, Q6_K, &[
        rule(AttentionV, &[Grouped], Q4_K),
        rule(AttentionOutput, &[EightExperts], Q5_K),
    ]),
    FileType::new("IQ3_XS", 22, IQ3_S, Q6_K, &[
        rule(AttentionV, &[Grouped], Q4_K),
        rule(AttentionK, &[], IQ3_XXS),
        rule(AttentionQ, &[], IQ3_XXS),
        rule(AttentionOutput, &[EightExperts], Q5_K),
        rule(FfnGate, &[Middle], IQ3_XXS),
        rule(FfnUp, &[Middle], IQ3_XXS),
    ]),
    FileType { embedding: IQ3_S, ..FileType::new("IQ3_XXS", 23, IQ3_XXS, Q5_K, &[
        rule(AttentionV, &[Grouped], Q4_K),
        rule(AttentionV, &[Unweighted], IQ3_S),
        rule(AttentionK, &[], IQ2_S),
        rule(AttentionQ, &[], IQ2_S),
        rule(FfnDown, &[Unweighted, FirstPart(8)], Q4_K),
        rule(FfnDown, &[Unweighted], Q3_K),
        rule(AttentionOutput, &[EightExperts], Q5_K),
        rule(AttentionOutput, &[], IQ3_S),
    ]) },
    FileType::tiny("IQ2_M", 29, IQ2_S, IQ3_S, IQ2_LARGER_RULES),
    FileType::tiny("IQ2_S", 28, IQ2_XS, IQ3_S, IQ2_LARGER_RULES),
    FileType::tiny("IQ2_XS", 20, IQ2_XS, Q2_K, IQ2_SMALLER_RULES),
    FileType::tiny("IQ2_XXS", 19, IQ2_XXS, Q2_K, IQ2_SMALLER_RULES),
    FileType { dense: Some(Q8_0), special_models: false, ..FileType::new("MXFP4_MOE", 38, MXFP4, Q8_0, &[]) },
];

const IQ4_RULES: &[Rule] = &[
    rule(AttentionV, &[Grouped], Q5_K),
    rule(FfnDown, &[Unweighted, FirstPart(8)], Q5_K),
    rule(AttentionOutput, &[EightExperts], Q5_K),
];

const IQ2_LARGER_RULES: &[Rule] = &[
    rule(AttentionV, &[GroupedOrExperts], Q4_K),
    rule(AttentionV, &[], IQ3_S),
    rule(AttentionK, &[EightExperts], Q4_K),
    rule(FfnDown, &[FirstEighthOfKind], IQ3_S),
    rule(AttentionOutput, &[EightExperts], Q5_K),
    rule(AttentionOutput, &[], IQ3_S),
];

const IQ2_SMALLER_RULES: &[Rule] = &[
    rule(AttentionV, &[GroupedOrExperts], Q4_K),
    rule(AttentionV, &[], Q2_K),
    rule(AttentionK, &[EightExperts], Q4_K),
    rule(FfnDown, &[FirstEighthOfKind], Q2_K),
    rule(AttentionOutput, &[EightExperts], Q5_K),
];
