//! How a router chooses: from the logits of a token to its experts and their mixing weights.
//!
//! Three families, one description. The softmax over all experts and then the best (Mixtral, Qwen3); the best first
//! and the softmax over them alone (gpt-oss); independent sigmoids, a bias that only the choice sees, and the
//! choice limited to the best groups (DeepSeek-V3, section 2.1.2). `problem` says what no model could mean.

use super::WeightId;

/// What a router's logits become before experts are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Softmax over all experts.
    Softmax,
    /// `1 / (1 + exp(-logit))`, each by itself.
    Sigmoid,
    /// The logits themselves; the weights are the softmax over those that were chosen.
    SoftmaxAfter,
}

/// How many experts a token gets, which, and with what weights.
///
/// Chosen are the `used` largest of score + bias, ties to the lower id. With `groups` (count, kept) the experts are `count`
/// runs of neighbours; a group is worth the sum of its two best score + bias, and only experts of the `kept` best groups
/// may be chosen. The weights are the scores without the bias, divided by their sum when `normalize` is set, times `scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    pub score: Score,
    /// (experts), added for the choice only.
    pub bias: Option<WeightId>,
    /// Number of groups, and of those that are kept.
    pub groups: Option<(usize, usize)>,
    pub normalize: bool,
    pub scale: f32,
    pub used: usize,
}

impl Routing {
    /// Softmax over all experts, the best of them, weights that sum to 1.
    pub fn softmax(used: usize) -> Routing {
        Routing { score: Score::Softmax, bias: None, groups: None, normalize: true, scale: 1.0, used }
    }

    /// Whether no more than the order of the logits decides who is chosen.
    pub fn is_by_logits(&self) -> bool {
        self.bias.is_none() && self.groups.is_none()
    }

    /// Why so many experts can not be chosen from in this way; `None` when they can.
    pub fn problem(&self, experts: usize) -> Option<String> {
        let used = self.used;
        if used == 0 || used > experts {
            return Some(format!("a token can not use {used} of {experts} experts"));
        }
        let (count, kept) = self.groups?;
        if count == 0 || kept == 0 || kept > count || !experts.is_multiple_of(count) {
            return Some(format!("{experts} experts can not be {count} groups of which {kept} are kept"));
        }
        let left = experts / count * kept;
        (used > left).then(|| format!("a token can not use {used} experts of the {left} in {kept} groups"))
    }
}
