// What the expert kernels share. An expert's matrix lies in a slot; `slots` says in which, or NONE when another side
// computes it. A dispatch serves the slots of one bank and leaves every other pick alone.

const NONE: u32 = 0xffffffffu;

struct Params {
    units: u32, // of 32 weights, a row of w
    row_quads: u32, // vec4 a row of w
    rows: u32, // of one expert; two for each output when gated
    tokens: u32, // t
    used: u32, // picks a token
    experts: u32,
    slots_at: u32, // this layer's part of the slot map
    bank_first: u32, // slots of this bank
    bank_slots: u32,
    picks_stride: u32, // words a token
    x_at: u32, // first vec4 of x
    x_stride: u32, // vec4 a token, or a pair
    out_at: u32,
    out_stride: u32, // f32 a token, or a pair
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> w: array<vec4<u32>>; // (slots of the bank, rows, row_quads)
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> picks: array<u32>; // (t, used ids, used weights)
@group(0) @binding(3) var<storage, read> slots: array<u32>; // (layers, experts)
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

// The slot of pick `i` of a token within this bank; NONE when it is not in it.
fn slot_of(expert: u32) -> u32 {
    let slot = slots[p.slots_at + min(expert, p.experts - 1u)];
    return select(NONE, slot - p.bank_first, slot >= p.bank_first && slot - p.bank_first < p.bank_slots);
}
