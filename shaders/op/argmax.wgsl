// The index of each row's largest value (workgroup x), ties to the lower one.

struct Params {
    n: u32,
    x_at: u32,
    x_stride: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>; // (r, n)
@group(0) @binding(1) var<storage, read_write> ids: array<u32>; // (r)

var<workgroup> best: array<f32, 256>;
var<workgroup> best_id: array<u32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let begin = p.x_at + group.x * p.x_stride;
    var value = -3.4e38;
    var id = min(index, p.n - 1u);
    for (var i = index; i < p.n; i += 256u) {
        if x[begin + i] > value {
            value = x[begin + i];
            id = i;
        }
    }
    best[index] = value;
    best_id[index] = id;
    workgroupBarrier();
    for (var step = 128u; step > 0u; step /= 2u) {
        if index < step {
            let other = best[index + step];
            let other_id = best_id[index + step];
            if other > best[index] || (other == best[index] && other_id < best_id[index]) {
                best[index] = other;
                best_id[index] = other_id;
            }
        }
        workgroupBarrier();
    }
    if index == 0u {
        ids[group.x] = best_id[0];
    }
}
