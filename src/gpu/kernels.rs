//! The kernels: which files each is put together from, what it binds, and which overrides it is built with.
//!
//! One table serves the executor and `tests/shaders.rs`, which builds every kernel x format x feature set without a GPU.

use rynd_quant::Format;

use super::layout::Layout;
use super::shaders::{Assembled, assemble};
use crate::backend::KvFormat;
use crate::plan::Activation;

/// How the lanes that share rows add up: by subgroup operations or through workgroup memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Team {
    Subgroup,
    Workgroup,
}

/// One kernel: an op file and what varies of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    Embed(Format),
    RmsNorm,
    Matvec(Format, Team),
    /// For packed formats.
    MatvecInt8(Format, Team),
    Matmul(Format),
    Gate,
    RopeStore(KvFormat),
    Attention(KvFormat),
    AttentionMerge,
    Router,
    ExpertsGated(Format, Team),
    ExpertsDown(Format, Team),
    ExpertsGroup,
    ExpertsMatmul(Format),
    ExpertsSum,
    TakeRows,
    Add,
    Argmax,
}

/// What a kernel may do with a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// What both matrix-vector kernels are put together from.
const MATVEC_FILES: [&str; 4] = ["lib/row_pair.wgsl", "lib/linear.wgsl", "lib/activations.wgsl", "lib/activation.wgsl"];

/// Values of a kernel's override constants, by name.
pub type Overrides = Vec<(&'static str, u32)>;

impl Kernel {
    /// Every kernel over every format and feature set.
    pub fn all() -> Vec<Kernel> {
        let mut all = vec![
            Kernel::RmsNorm,
            Kernel::Gate,
            Kernel::AttentionMerge,
            Kernel::Router,
            Kernel::ExpertsGroup,
            Kernel::ExpertsSum,
            Kernel::TakeRows,
            Kernel::Add,
            Kernel::Argmax,
        ];
        for kv in [KvFormat::F16, KvFormat::Q8_0, KvFormat::F32] {
            all.extend([Kernel::RopeStore(kv), Kernel::Attention(kv)]);
        }
        for format in Layout::formats() {
            all.extend([Kernel::Embed(format), Kernel::Matmul(format), Kernel::ExpertsMatmul(format)]);
            for team in [Team::Subgroup, Team::Workgroup] {
                if Layout::of(format).is_some_and(Layout::is_packed) {
                    all.push(Kernel::MatvecInt8(format, team));
                }
                all.extend([
                    Kernel::Matvec(format, team),
                    Kernel::ExpertsGated(format, team),
                    Kernel::ExpertsDown(format, team),
                ]);
            }
        }
        all
    }

    /// Files of `shaders/` it is put together from.
    pub fn files(self) -> Vec<&'static str> {
        let mut files = match self {
            Kernel::Embed(_) => vec!["op/embed.wgsl", "lib/env.wgsl"],
            Kernel::RmsNorm => vec!["op/rms_norm.wgsl", "lib/reduce.wgsl"],
            Kernel::Matvec(..) => [&["op/matvec.wgsl"][..], &MATVEC_FILES].concat(),
            Kernel::MatvecInt8(..) => [&["op/matvec_int8.wgsl"][..], &MATVEC_FILES].concat(),
            Kernel::Matmul(_) => vec!["op/matmul.wgsl", "lib/linear.wgsl", "lib/tile.wgsl", "lib/activation.wgsl"],
            Kernel::Gate => vec!["op/gate.wgsl", "lib/activation.wgsl"],
            Kernel::RopeStore(kv) => {
                let write = match kv {
                    KvFormat::F32 => "lib/kv_write_f32.wgsl",
                    KvFormat::F16 => "lib/kv_write_f16.wgsl",
                    KvFormat::Q8_0 => "lib/kv_write_q8_0.wgsl",
                };
                vec!["op/rope_store.wgsl", "lib/env.wgsl", "lib/kv_shape.wgsl", "lib/kv_write.wgsl", write]
            }
            Kernel::Attention(kv) => {
                let read = match kv {
                    KvFormat::F32 => "lib/kv_read_f32.wgsl",
                    KvFormat::F16 => "lib/kv_read_f16.wgsl",
                    KvFormat::Q8_0 => "lib/kv_read_q8_0.wgsl",
                };
                vec!["op/attention.wgsl", "lib/env.wgsl", "lib/kv_shape.wgsl", read]
            }
            Kernel::AttentionMerge => vec!["op/attention_merge.wgsl", "lib/kv_shape.wgsl"],
            Kernel::Router => vec!["op/router.wgsl"],
            Kernel::ExpertsGated(..) => {
                vec!["op/experts_gated.wgsl", "lib/experts.wgsl", "lib/activations.wgsl", "lib/activation.wgsl"]
            }
            Kernel::ExpertsDown(..) => vec!["op/experts_down.wgsl", "lib/experts.wgsl", "lib/activations.wgsl"],
            Kernel::ExpertsGroup => vec!["op/experts_group.wgsl"],
            Kernel::ExpertsMatmul(_) => {
                vec!["op/experts_matmul.wgsl", "lib/experts.wgsl", "lib/tile.wgsl", "lib/activation.wgsl"]
            }
            Kernel::ExpertsSum => vec!["op/experts_sum.wgsl"],
            Kernel::TakeRows => vec!["op/take_rows.wgsl"],
            Kernel::Add => vec!["op/add.wgsl"],
            Kernel::Argmax => vec!["op/argmax.wgsl"],
        };
        if let Some(layout) = self.format().and_then(Layout::of) {
            files.push("lib/unit.wgsl");
            files.extend(layout.files);
        }
        match self.team() {
            Some(Team::Subgroup) => files.push("lib/team_subgroup.wgsl"),
            Some(Team::Workgroup) => files.push("lib/team_workgroup.wgsl"),
            None => {}
        }
        files
    }

    /// The op file's name, and the format it decodes: "matvec q4_k".
    pub fn name(self) -> String {
        let file = self.files()[0];
        let op = file.strip_prefix("op/").and_then(|file| file.strip_suffix(".wgsl")).unwrap_or(file);
        match self.format() {
            Some(format) => format!("{op} {}", format.name().to_lowercase()),
            None => op.to_owned(),
        }
    }

    /// The whole WGSL text.
    pub fn assemble(self) -> Assembled {
        assemble(self.files())
    }

    /// The weight format it decodes.
    fn format(self) -> Option<Format> {
        match self {
            Kernel::Embed(format)
            | Kernel::Matvec(format, _)
            | Kernel::MatvecInt8(format, _)
            | Kernel::Matmul(format)
            | Kernel::ExpertsGated(format, _)
            | Kernel::ExpertsDown(format, _)
            | Kernel::ExpertsMatmul(format) => Some(format),
            Kernel::RmsNorm
            | Kernel::Gate
            | Kernel::RopeStore(_)
            | Kernel::Attention(_)
            | Kernel::AttentionMerge
            | Kernel::Router
            | Kernel::ExpertsGroup
            | Kernel::ExpertsSum
            | Kernel::TakeRows
            | Kernel::Add
            | Kernel::Argmax => None,
        }
    }

    /// How its lanes add up, where that varies.
    pub fn team(self) -> Option<Team> {
        match self {
            Kernel::Matvec(_, team)
            | Kernel::MatvecInt8(_, team)
            | Kernel::ExpertsGated(_, team)
            | Kernel::ExpertsDown(_, team) => Some(team),
            Kernel::Embed(_)
            | Kernel::RmsNorm
            | Kernel::Matmul(_)
            | Kernel::Gate
            | Kernel::RopeStore(_)
            | Kernel::Attention(_)
            | Kernel::AttentionMerge
            | Kernel::Router
            | Kernel::ExpertsGroup
            | Kernel::ExpertsMatmul(_)
            | Kernel::ExpertsSum
            | Kernel::TakeRows
            | Kernel::Add
            | Kernel::Argmax => None,
        }
    }

    /// Its bindings, in order.
    pub fn bindings(self) -> &'static [Access] {
        use Access::{Read as R, Write as W};
        match self {
            Kernel::Embed(_) | Kernel::RmsNorm | Kernel::Gate | Kernel::TakeRows => &[R, R, W],
            Kernel::Matvec(..) | Kernel::MatvecInt8(..) | Kernel::Matmul(_) | Kernel::ExpertsSum => &[R, R, R, W],
            Kernel::RopeStore(_) => &[W, W, W, R, R, R, W, W],
            Kernel::Attention(_) => &[R, R, R, R, W],
            Kernel::ExpertsGated(..) | Kernel::ExpertsDown(..) => &[R, R, R, R, R, R, W],
            Kernel::AttentionMerge | Kernel::Router | Kernel::ExpertsGroup | Kernel::Add | Kernel::Argmax => &[R, W],
            Kernel::ExpertsMatmul(_) => &[R, R, R, R, R, R, W, R],
        }
    }
}

/// The `GATE` override of an activation.
pub fn gate(act: Activation) -> u32 {
    match act {
        Activation::Silu => 1,
        Activation::GeluTanh => 2,
    }
}

/// Tokens of a matmul tile, and the overrides for it.
pub fn tile_overrides(tokens: usize) -> (usize, Overrides) {
    let per = if tokens > 16 { 4 } else { 1 };
    (16 * per as usize, vec![("PER", per), ("TILE_TOKENS", 16 * per)])
}

/// An attention kernel's shape for one kind of head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    pub threads: u32,
    /// Rows of a tile: tokens x query heads of one key-value head.
    pub rows: u32,
    dim_lanes: u32,
    head_dim: u32,
}

impl AttentionShape {
    /// The largest head that the kernels hold.
    pub const MAX_HEAD_DIM: usize = 256;

    /// For one token: a subgroup or two a workgroup, no more rows than a group has heads.
    pub fn narrow(head_dim: usize, group: usize) -> AttentionShape {
        let dim_lanes = (head_dim as u32 / 2).next_power_of_two();
        let threads = dim_lanes.max(64);
        let rows = (group as u32).next_power_of_two().clamp(threads / 64, 8);
        AttentionShape { threads, rows, dim_lanes, head_dim: head_dim as u32 }
    }

    /// For a batch: as many rows as 32 KiB of workgroup memory hold beside their scores.
    pub fn wide(head_dim: usize) -> AttentionShape {
        let dim_lanes = (head_dim as u32 / 2).next_power_of_two();
        let rows = if head_dim > 128 { 16 } else { 32 };
        AttentionShape { threads: 256, rows, dim_lanes, head_dim: head_dim as u32 }
    }

    /// The kernel's overrides.
    pub fn overrides(self) -> Overrides {
        vec![
            ("HEAD_DIM", self.head_dim),
            ("THREADS", self.threads),
            ("ROWS", self.rows),
            ("DIM_LANES", self.dim_lanes),
            ("SCORE_ROWS", self.rows / (self.threads / 64)),
            ("MIX_ROWS", (self.rows * self.dim_lanes).div_ceil(self.threads)),
        ]
    }
}
