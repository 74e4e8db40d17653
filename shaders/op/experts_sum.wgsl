// out (t, n) += the sum of a token's pair outputs (t * used, n), of the picks whose expert lies in a slot here.

struct Params {
    n: u32,
    used: u32,
    experts: u32,
    slots_at: u32,
    slot_count: u32,
    x_stride: u32, // f32 a pair
    out_at: u32,
    out_stride: u32, // f32 a token
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>; // (t * used, n)
@group(0) @binding(1) var<storage, read> picks: array<u32>; // (t, used) ids
@group(0) @binding(2) var<storage, read> slots: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let i = group.x * 256u + index;
    let token = group.y;
    if i >= p.n {
        return;
    }
    var sum = 0.0;
    for (var pick = 0u; pick < p.used; pick += 1u) {
        let expert = picks[token * p.used + pick];
        let slot = slots[p.slots_at + min(expert, p.experts - 1u)];
        if slot < p.slot_count {
            sum += x[(token * p.used + pick) * p.x_stride + i];
        }
    }
    out[p.out_at + token * p.out_stride + i] += sum;
}
