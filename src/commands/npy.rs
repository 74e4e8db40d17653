//! NumPy's `.npy` format, version 1.0, written: little-endian float32, C order. Rows may come one at a time.

use std::io::{self, Write};

/// An array being written; the number of values must be the shape's product when it is finished.
pub struct NpyWriter<W: Write> {
    out: W,
    left: usize, // values
}

impl<W: Write> NpyWriter<W> {
    /// Writes the header.
    pub fn new(mut out: W, shape: &[usize]) -> io::Result<NpyWriter<W>> {
        let dims: Vec<String> = shape.iter().map(ToString::to_string).collect();
        // A tuple of one needs its comma.
        let comma = if dims.len() == 1 { "," } else { "" };
        let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}{comma}), }}", dims.join(", "));
        // Magic, version and length are 10 bytes; the whole is padded to 64 and ends with a newline.
        let padding = (10 + header.len() + 1).next_multiple_of(64) - (10 + header.len() + 1);
        header.push_str(&" ".repeat(padding));
        header.push('\n');
        out.write_all(b"\x93NUMPY\x01\x00")?;
        out.write_all(&(header.len() as u16).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        Ok(NpyWriter { out, left: shape.iter().product() })
    }

    /// Appends values.
    pub fn write(&mut self, values: &[f32]) -> io::Result<()> {
        assert!(values.len() <= self.left, "more values than the shape holds");
        self.left -= values.len();
        let mut bytes = Vec::with_capacity(size_of_val(values));
        values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
        self.out.write_all(&bytes)
    }

    /// Flushes and gives the writer back; the array is complete.
    pub fn finish(mut self) -> io::Result<W> {
        assert_eq!(self.left, 0, "fewer values than the shape holds");
        self.out.flush()?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_values_lie_where_numpy_looks_for_them() {
        let mut bytes = vec![];
        let mut npy = NpyWriter::new(&mut bytes, &[2, 3]).unwrap();
        npy.write(&[0.0, 1.0, 2.0]).unwrap();
        npy.write(&[3.0, 4.0, -5.5]).unwrap();
        npy.finish().unwrap();
        let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        assert_eq!((header + 10) % 64, 0);
        assert!(bytes[10..].starts_with(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"));
        assert_eq!(bytes[9 + header], b'\n');
        assert_eq!(bytes[10 + header..].len(), 24);
        assert!(bytes.ends_with(&(-5.5_f32).to_le_bytes()));
    }
}
