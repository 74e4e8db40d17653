// `env: array<u32>` is what changes between runs, one buffer written once a run: 4 words a token from the start; further
// on the indices of wanted rows, the attention tiles, and every sequence's page table. gpu/run.rs writes it.

// Id, position, where the sequence's page table starts in env, unused.
fn token_at(token: u32) -> vec4<u32> {
    let at = token * 4u;
    return vec4<u32>(env[at], env[at + 1u], env[at + 2u], env[at + 3u]);
}

// The cache page that holds a position.
fn page_of(table: u32, page: u32) -> u32 {
    return env[table + page];
}
