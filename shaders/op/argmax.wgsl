// The index of each row's largest value (workgroup x), ties to the lower one; NONE for a row with a value that is not
// finite, which the host then looks at itself.

struct Params {
    n: u32,
    x_at: u32,
    x_stride: u32,
    out_at: u32,
}

const NONE: u32 = 0xffffffffu;
const EXPONENT: u32 = 0x7f800000u;

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>; // (r, n)
@group(0) @binding(1) var<storage, read_write> ids: array<u32>; // (r)

var<workgroup> best: array<f32, 256>;
var<workgroup> best_id: array<u32, 256>; // NONE once a value is not finite

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let begin = p.x_at + group.x * p.x_stride;
    var value = -3.4e38;
    var id = min(index, p.n - 1u);
    var finite = true;
    // A vocabulary of 16 million would be the first with more than 65,535 turns.
    for (var i = index; i < p.n; i += 256u) {
        let v = x[begin + i];
        // By its bits: compilers may take it that no value is NaN.
        finite = finite && (bitcast<u32>(v) & EXPONENT) != EXPONENT;
        if v > value {
            value = v;
            id = i;
        }
    }
    best[index] = value;
    best_id[index] = select(NONE, id, finite);
    workgroupBarrier();
    for (var step = 128u; step > 0u; step /= 2u) {
        if index < step {
            let other = best[index + step];
            let other_id = best_id[index + step];
            let larger = other > best[index] || (other == best[index] && other_id < best_id[index]);
            if best_id[index] != NONE && (other_id == NONE || larger) {
                best[index] = other;
                best_id[index] = other_id;
            }
        }
        workgroupBarrier();
    }
    if index == 0u {
        ids[p.out_at + group.x] = best_id[0];
    }
}
