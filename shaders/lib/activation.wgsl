// The gate's activation, chosen by an override: 1 is SiLU, 2 the tanh approximation of GELU.

override GATE: u32 = 0u;

fn activate(x: f32) -> f32 {
    if GATE == 2u {
        // tanh(z) = 1 - 2 / (1 + exp(2 z)): no overflow to NaN for large z, which some drivers' tanh has.
        let z = 0.7978845608028654 * x * (1.0 + 0.044715 * x * x);
        return x * (1.0 - 1.0 / (1.0 + exp(2.0 * z)));
    }
    return x / (1.0 + exp(-x));
}
