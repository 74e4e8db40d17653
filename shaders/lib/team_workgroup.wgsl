// A team is the set of lanes that work on one pair of rows: here 16 neighbours, which sum through workgroup memory.
// For adapters without subgroup operations. The same names as lib/team_subgroup.wgsl.

const WORKGROUP: u32 = 64u;
const LANES: u32 = 16u;

struct Lane {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
}

var<workgroup> team_values: array<vec4<f32>, WORKGROUP>;

fn lane_of(at: Lane) -> u32 { return at.index % LANES; }
fn lanes_of(at: Lane) -> u32 { return LANES; }
fn team_of(at: Lane) -> u32 { return at.index / LANES; }
fn teams_of(at: Lane) -> u32 { return WORKGROUP / LANES; }

// The sum of v over the team, in every lane. Call it in flow that is uniform over the workgroup.
fn team_sum(at: Lane, v: vec3<f32>) -> vec3<f32> {
    team_values[at.index] = vec4<f32>(v, 0.0);
    workgroupBarrier();
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        if at.index % LANES < step {
            team_values[at.index] += team_values[at.index + step];
        }
        workgroupBarrier();
    }
    let sum = team_values[at.index - at.index % LANES].xyz;
    workgroupBarrier();
    return sum;
}
