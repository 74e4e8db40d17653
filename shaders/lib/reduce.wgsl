// Sums over a workgroup of REDUCE invocations through workgroup memory.

const REDUCE: u32 = 256u;

var<workgroup> reduced: array<f32, REDUCE>;

// The sum of v over the workgroup, in every invocation. Call it in uniform flow.
fn workgroup_sum(index: u32, v: f32) -> f32 {
    reduced[index] = v;
    workgroupBarrier();
    for (var step = REDUCE / 2u; step > 0u; step /= 2u) {
        if index < step {
            reduced[index] += reduced[index + step];
        }
        workgroupBarrier();
    }
    let sum = reduced[0];
    workgroupBarrier();
    return sum;
}
