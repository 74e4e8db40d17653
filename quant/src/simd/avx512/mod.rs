//! AVX-512 with VNNI, VBMI and GFNI: Ice Lake, Zen 4 and later.

pub(crate) mod vector;
