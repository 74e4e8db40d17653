// A team is the set of lanes that work on one pair of rows: here a subgroup, whatever its size. The host never needs
// to know the size: lanes stride over the units of a row, and the teams of a workgroup stride over its rows.
// The same names as lib/team_workgroup.wgsl.

const WORKGROUP: u32 = 64u;

struct Lane {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) team: u32,
    @builtin(num_subgroups) teams: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
}

fn lane_of(at: Lane) -> u32 { return at.lane; }
fn lanes_of(at: Lane) -> u32 { return at.lanes; }
fn team_of(at: Lane) -> u32 { return at.team; }
fn teams_of(at: Lane) -> u32 { return at.teams; }

// The sum of v over the team, in every lane. Call it in flow that is uniform over the workgroup.
fn team_sum(at: Lane, v: vec3<f32>) -> vec3<f32> {
    return vec3<f32>(subgroupAdd(v.x), subgroupAdd(v.y), subgroupAdd(v.z));
}
