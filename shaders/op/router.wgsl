// The `used` largest of softmax(logits) of each token (workgroup x), ties to the lower id: ids, then mixing weights,
// which sum to 1 when NORMALIZE is set, times p.scale.

struct Params {
    experts: u32, // at most 1024
    used: u32,
    logits_stride: u32,
    weights_at: u32, // where the weights begin
    scale: f32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> logits: array<f32>; // (t, experts)
@group(0) @binding(1) var<storage, read_write> picks: array<u32>; // ids (t, used), and at p.weights_at their weights (t, used)

override NORMALIZE: bool = true;

const LEAST: f32 = -3.4e38;
const LANES: u32 = 128u;

var<workgroup> left: array<f32, 1024>; // LEAST once picked
var<workgroup> best: array<f32, LANES>;
var<workgroup> best_id: array<u32, LANES>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let token = group.x;
    for (var e = index; e < p.experts; e += LANES) {
        // The clamp keeps a broken logit from being taken for a picked one; NaN becomes LEAST or larger too.
        left[e] = max(logits[token * p.logits_stride + e], -3.3e38);
    }
    workgroupBarrier();
    var largest = 0.0;
    var total = 0.0; // of the picks' weights; kept by invocation 0
    for (var pick = 0u; pick < p.used; pick += 1u) {
        var value = LEAST;
        var id = p.experts - 1u;
        for (var e = index; e < p.experts; e += LANES) {
            if left[e] > value {
                value = left[e];
                id = e;
            }
        }
        best[index] = value;
        best_id[index] = id;
        workgroupBarrier();
        for (var step = LANES / 2u; step > 0u; step /= 2u) {
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
            if pick == 0u {
                largest = best[0];
            }
            let weight = exp(best[0] - largest);
            total += weight;
            picks[token * p.used + pick] = best_id[0];
            picks[p.weights_at + token * p.used + pick] = bitcast<u32>(weight);
            left[best_id[0]] = LEAST;
        }
        workgroupBarrier();
    }
    if index == 0u {
        if !NORMALIZE {
            total = 0.0;
            for (var e = 0u; e < p.experts; e += 1u) {
                total += exp(logits[token * p.logits_stride + e] - largest);
            }
        }
        for (var pick = 0u; pick < p.used; pick += 1u) {
            let at = p.weights_at + token * p.used + pick;
            picks[at] = bitcast<u32>(bitcast<f32>(picks[at]) / total * p.scale);
        }
    }
}
