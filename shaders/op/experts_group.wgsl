// Groups a batch's (token, pick) pairs by expert, in a fixed order whatever the driver: starts (experts + 1) and then,
// expert by expert, the pairs token * used + pick. One workgroup; each invocation counts for its own experts.

struct Params {
    pairs: u32, // t * used
    used: u32,
    experts: u32, // at most 1024
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> picks: array<u32>; // (t, used) ids
@group(0) @binding(1) var<storage, read_write> groups: array<u32>; // (experts + 1) starts, (t * used) pairs

const CHUNK: u32 = 1024u;

var<workgroup> ids: array<u32, CHUNK>;
var<workgroup> next: array<u32, 1024>; // counts, then the place of an expert's next pair

fn stage(index: u32, begin: u32) {
    for (var i = index; i < min(CHUNK, p.pairs - begin); i += 256u) {
        ids[i] = picks[begin + i];
    }
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) index: u32) {
    for (var e = index; e < p.experts; e += 256u) {
        next[e] = 0u;
    }
    for (var begin = 0u; begin < p.pairs; begin += CHUNK) {
        stage(index, begin);
        workgroupBarrier();
        for (var e = index; e < p.experts; e += 256u) {
            var count = 0u;
            for (var i = 0u; i < min(CHUNK, p.pairs - begin); i += 1u) {
                count += u32(ids[i] == e);
            }
            next[e] += count;
        }
        workgroupBarrier();
    }
    if index == 0u {
        var start = 0u;
        for (var e = 0u; e < p.experts; e += 1u) {
            let count = next[e];
            groups[e] = start;
            next[e] = start;
            start += count;
        }
        groups[p.experts] = start;
    }
    workgroupBarrier();
    for (var begin = 0u; begin < p.pairs; begin += CHUNK) {
        stage(index, begin);
        workgroupBarrier();
        for (var e = index; e < p.experts; e += 256u) {
            var at = next[e];
            for (var i = 0u; i < min(CHUNK, p.pairs - begin); i += 1u) {
                if ids[i] == e {
                    groups[p.experts + 1u + at] = begin + i;
                    at += 1u;
                }
            }
            next[e] = at;
        }
        workgroupBarrier();
    }
}
