//! A paging policy: what experts are ordered by, when they may move, and how hard it is to push another one out.
//!
//! `Named` lists what `rynd experts replay` can compare. The constants of the default policy were chosen by replay; the
//! figures are in the crate's documentation.

use super::score::{HALF_LIFE, Ranking};

/// When experts move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Every miss is loaded before the next layer, whatever it costs: what an upload on a miss does.
    EachLayer,
    /// Between two tokens, the most valuable first, as far as the budget goes.
    EachToken,
}

/// How much may move in a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    Unlimited,
    /// Bytes a token.
    Bytes(u64),
    /// Experts a mixture layer and token, on average.
    Uploads(f64),
}

/// A paging policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    pub ranking: Ranking,
    /// Tokens after which a pick counts half (`Ranking::Crf`).
    pub half_life: f64,
    /// A newcomer's score must be this many times the victim's.
    pub gate: f64,
    pub when: When,
    pub budget: Budget,
    /// Part of a token that the scores' clock moves on with a prompt token.
    pub prompt_tick: f64,
}

/// The newcomer's score over the victim's, by default.
pub const GATE: f64 = 1.3;
/// Uploads a layer and token, by default.
pub const UPLOADS: f64 = 1.0;
/// A prompt token moves the scores' clock by this part of a token: a half-life spans 128 prompt tokens, so the last 512
/// are remembered at a sixteenth or more.
pub const PROMPT_TICK: f64 = 0.25;

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            ranking: Ranking::Crf,
            half_life: HALF_LIFE,
            gate: GATE,
            when: When::EachToken,
            budget: Budget::Uploads(UPLOADS),
            prompt_tick: PROMPT_TICK,
        }
    }
}

/// A policy that the simulator knows by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    Lru,
    Lfu,
    Lfru,
    Crf,
    CrfGate,
    StaticInSample,
    StaticHeldOut,
    Random,
    BeladyCap,
    Belady,
}

impl Named {
    /// All of them, the simple ones first, the unreachable ones last.
    pub const ALL: [Named; 10] = [
        Named::Random,
        Named::StaticHeldOut,
        Named::StaticInSample,
        Named::Lru,
        Named::Lfu,
        Named::Lfru,
        Named::Crf,
        Named::CrfGate,
        Named::BeladyCap,
        Named::Belady,
    ];

    /// As the user writes it.
    pub fn name(self) -> &'static str {
        match self {
            Named::Lru => "lru",
            Named::Lfu => "lfu",
            Named::Lfru => "lfru",
            Named::Crf => "crf",
            Named::CrfGate => "crf-gate",
            Named::StaticInSample => "static",
            Named::StaticHeldOut => "static-held-out",
            Named::Random => "random",
            Named::BeladyCap => "belady-cap",
            Named::Belady => "belady",
        }
    }

    /// The pager's policy, with the constants of `base`; `None` for what needs the future or never moves.
    pub fn policy(self, base: &Policy) -> Option<Policy> {
        let at_once =
            |ranking| Some(Policy { ranking, gate: 0.0, when: When::EachLayer, budget: Budget::Unlimited, ..*base });
        match self {
            Named::Lru => at_once(Ranking::Lru),
            Named::Lfu => at_once(Ranking::Lfu),
            Named::Lfru => at_once(Ranking::Lfru),
            Named::Crf => at_once(Ranking::Crf),
            Named::Random => at_once(Ranking::Random { seed: 0 }),
            Named::CrfGate => Some(*base),
            Named::StaticInSample | Named::StaticHeldOut | Named::Belady | Named::BeladyCap => None,
        }
    }
}

impl std::str::FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Named, String> {
        Named::ALL.into_iter().find(|named| named.name() == text).ok_or_else(|| {
            let known: Vec<&str> = Named::ALL.iter().map(|named| named.name()).collect();
            format!("unknown policy '{text}'; known: {}", known.join(", "))
        })
    }
}
