//! Numbers as people read them: bytes, durations, counts, means with their spread.
//!
//! Bytes are decimal (1 GB is 10^9), as bandwidths are.

use std::time::Duration;

/// `n` with its unit, three digits: "987 B", "1.12 GB".
pub fn bytes(n: u64) -> String {
    scaled(n as f64, &["B", "kB", "MB", "GB", "TB"])
}

/// A count: "151936" below a million, "494 M", "30.5 B" (billions) above.
pub fn count(n: u64) -> String {
    if n < 1_000_000 { n.to_string() } else { scaled(n as f64, &["", "k", "M", "B", "T"]) }
}

fn scaled(mut value: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {}", units[unit]).trim_end().to_owned()
}

/// "820 us", "31.4 ms", "1.80 s", "2 min 03 s".
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 0.001 => format!("{:.0} us", s * 1e6),
        s if s < 0.1 => format!("{:.1} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 60.0 => format!("{s:.2} s"),
        s => format!("{} min {:02} s", s as u64 / 60, s as u64 % 60),
    }
}

/// Things a second; 0 when no time passed.
pub fn rate(things: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { things as f64 / time.as_secs_f64() }
}

/// Mean and sample standard deviation (0 for a single value).
pub fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

/// FNV-1a, 64 bits, of the values' little-endian bytes: equal logits have equal hashes.
pub fn hash(values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_durations_read_well() {
        let cases = [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9_996, "10.0 kB"), (1_117_320_768, "1.12 GB")];
        for (n, text) in cases {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(count(151_936), "151936");
        assert_eq!(count(494_032_768), "494 M");
        assert_eq!(duration(Duration::from_millis(1800)), "1.80 s");
        assert_eq!(duration(Duration::from_secs(123)), "2 min 03 s");
    }

    #[test]
    fn the_spread_of_known_values() {
        assert_eq!(mean_and_deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).0, 5.0);
        assert!((mean_and_deviation(&[1.0, 3.0]).1 - 2.0_f64.sqrt()).abs() < 1e-12);
        assert_eq!(mean_and_deviation(&[7.0]), (7.0, 0.0));
    }
}
