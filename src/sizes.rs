//! Sizes as people write them: `8G` means one thing everywhere.
//!
//! K, M, G and T are decimal, as on the box of a disk or a card and as rynd prints them; KiB, MiB, GiB and TiB are powers of
//! 1024. A `B` behind, spaces before the unit and small letters change nothing; without a unit it is bytes.

/// What help texts say of a size.
pub const HELP: &str = "K, M, G and T are powers of 1000, KiB, MiB, GiB and TiB of 1024";

/// Far above any memory and any disk; what is more is a slip of the pen.
const MOST: f64 = 1e18;

/// Bytes of `8G`, `500M`, `1.5GB`, `4GiB` or `4096`.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is no size; write it like 24G, 512M, 1.5T or 16GiB ({HELP})");
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit = unit.trim().to_ascii_lowercase();
    let (prefix, base) = match unit.strip_suffix("ib") {
        Some("") => return Err(wrong()),
        Some(prefix) => (prefix, 1024.0_f64),
        None => (unit.strip_suffix('b').unwrap_or(&unit), 1000.0),
    };
    let power = match prefix {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(wrong()),
    };
    let bytes = number * base.powi(power);
    if bytes <= MOST { Ok(bytes.round() as u64) } else { Err(wrong()) }
}

/// A number of tokens: `8192`, or `8K` and `1M` in the powers of two that contexts are counted in.
pub fn parse_tokens(text: &str) -> Result<usize, String> {
    let wrong = || format!("'{text}' is no number of tokens; write it like 8192 or 32K (32 times 1024)");
    let lower = text.trim().to_ascii_lowercase();
    let (number, unit) = match lower.strip_suffix('k') {
        Some(number) => (number, 1 << 10),
        None => lower.strip_suffix('m').map_or((lower.as_str(), 1), |number| (number, 1 << 20)),
    };
    let tokens = number.parse::<usize>().ok().and_then(|n| n.checked_mul(unit));
    tokens.filter(|n| (1..=1 << 30).contains(n)).ok_or_else(wrong)
}

/// A size of at least one byte.
pub fn parse_some(text: &str) -> Result<u64, String> {
    match parse(text)? {
        0 => Err(format!("'{text}' is nothing; give at least one byte")),
        bytes => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_decimal_and_ib_is_binary() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512b", 512),
            ("8G", 8_000_000_000),
            ("8g", 8_000_000_000),
            ("8 GB", 8_000_000_000),
            (" 1.5gb ", 1_500_000_000),
            ("4GiB", 4 << 30),
            ("4gib", 4 << 30),
            ("0.5 KiB", 512),
            ("2T", 2_000_000_000_000),
            ("1.1K", 1100),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "8X", "-1", "1e99T", "inf", "nan", "8GG", "8iB", "1.2.3", "8 G B", "9999999T"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse_some("0").is_err() && parse_some("0.2").is_err());
        assert_eq!(parse_some("1"), Ok(1));
    }

    #[test]
    fn tokens_are_counted_in_powers_of_two() {
        for (text, tokens) in [("1", 1), ("8192", 8192), ("8K", 8192), ("256k", 262_144), ("1M", 1 << 20)] {
            assert_eq!(parse_tokens(text), Ok(tokens), "{text}");
        }
        for text in ["", "0", "K", "-1", "8KiB", "1.5K", "2048M", "99999999999999999999"] {
            assert!(parse_tokens(text).is_err(), "{text}");
        }
    }
}
