// What the expert kernels share. An expert's matrix lies in a slot; `slots` says in which, or NONE when another side
// computes it. A dispatch serves the slots of up to three banks and leaves every other pick alone: a bank is what one
// binding holds, and with the other buffers three are as many as every adapter binds.

const NONE: u32 = 0xffffffffu;

struct Params {
    units: u32, // of 32 weights, a row of w
    row_quads: u32, // vec4 a row of w
    rows: u32, // of one expert; two for each output when gated
    used: u32, // picks a token
    experts: u32,
    slots_at: u32, // this layer's part of the slot map
    first_slot: u32, // of these banks
    slot_count: u32, // of these banks
    second_bank: u32, // its first slot, counted from the first of these banks; past the last one when there is none
    third_bank: u32,
    weights_at: u32, // where the picks' weights begin
    x_at: u32, // first vec4 of x
    x_stride: u32, // vec4 a token, or a pair
    out_at: u32,
    out_stride: u32, // f32 a token, or a pair
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> w0: array<vec4<u32>>; // (slots, rows, row_quads)
@group(0) @binding(1) var<storage, read> w1: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> w2: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> picks: array<u32>; // ids (t, used), and at p.weights_at their weights (t, used)
@group(0) @binding(5) var<storage, read> slots: array<u32>; // (layers, experts)
@group(0) @binding(6) var<storage, read_write> out: array<f32>;

override BANKS: u32 = 1u; // that are bound, 1 to 3

// A bank is below 2^31 bytes, so 27 bits number its vec4s; the bits above say which bank.
const BANK_SHIFT: u32 = 27u;

fn quad(at: u32) -> vec4<u32> {
    if BANKS == 1u {
        return w0[at];
    }
    let bank = at >> BANK_SHIFT;
    let i = at & ((1u << BANK_SHIFT) - 1u);
    if bank == 0u {
        return w0[i];
    }
    if bank == 1u {
        return w1[i];
    }
    return w2[i];
}

// The slot of an expert, counted from the first of these banks; NONE when it is in none of them.
fn slot_of(expert: u32) -> u32 {
    let slot = slots[p.slots_at + min(expert, p.experts - 1u)];
    return select(NONE, slot - p.first_slot, slot >= p.first_slot && slot - p.first_slot < p.slot_count);
}

// Where a row of a slot's matrix begins.
fn row_at(slot: u32, row: u32) -> u32 {
    if BANKS == 1u {
        return (slot * p.rows + row) * p.row_quads;
    }
    // Banks differ in size: where one ends is where a pool can be cut.
    let in_third = slot >= p.third_bank;
    let bank = u32(slot >= p.second_bank) + u32(in_third);
    let first = select(select(0u, p.second_bank, bank > 0u), p.third_bank, in_third);
    return (bank << BANK_SHIFT) | (((slot - first) * p.rows + row) * p.row_quads);
}
