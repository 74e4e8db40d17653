// `env: array<u32>` is what changes between runs, one buffer written once a run: 4 words a token from the start; further
// on the indices of wanted rows and the attention tiles; behind those, where they stay from run to run, every sequence's
// page tables, one a page group. gpu/run.rs writes it.

// Id, position, where the sequence's page tables start in env, words from one group's table to the next.
fn token_at(token: u32) -> vec4<u32> {
    let at = token * 4u;
    return vec4<u32>(env[at], env[at + 1u], env[at + 2u], env[at + 3u]);
}

// The cache page of a group that holds a position.
fn page_of(token: vec4<u32>, page_group: u32, page: u32) -> u32 {
    return env[token.z + page_group * token.w + page];
}
