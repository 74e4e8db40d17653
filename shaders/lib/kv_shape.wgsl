// The key-value cache of one layer. A head of a page is 64 positions x HEAD_DIM; heads of a page are neighbours. Keys lie
// in chunks of 8 dimensions, within a chunk by position: 64 lanes that score 64 positions read neighbouring vectors.
// Values lie by position: lanes that mix neighbouring dimensions read neighbouring words.

override HEAD_DIM: u32 = 64u; // a multiple of 8, at most 256

const PAGE: u32 = 64u;
