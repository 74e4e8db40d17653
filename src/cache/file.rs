//! Reading a segment file: positioned reads, each sum checked before the bytes are given out.

use std::fs::File;
use std::path::Path;

use super::error::{CacheError, Result};
use super::format::{Body, PREFIX_BYTES, Place, Prefix, SUM_BYTES, record_sum};

/// Opens a segment and reads its prefix.
pub fn open(path: &Path) -> Result<(File, Prefix)> {
    let file = File::open(path).map_err(CacheError::io(path))?;
    let bytes = file.metadata().map_err(CacheError::io(path))?.len();
    let mut prefix = [0; PREFIX_BYTES];
    read_at(&file, &mut prefix, 0).map_err(CacheError::io(path))?;
    let prefix = Prefix::decode(&prefix, bytes).map_err(|why| CacheError::bad(path, why))?;
    Ok((file, prefix))
}

/// Reads the rest of the header.
pub fn body(path: &Path, file: &File, prefix: &Prefix) -> Result<Body> {
    let mut bytes = vec![];
    // Its length was checked against the file's; what the system has not got is no reason to stop.
    if bytes.try_reserve_exact(prefix.body_bytes as usize).is_err() {
        return Err(CacheError::bad(path, "its header does not fit into memory"));
    }
    bytes.resize(prefix.body_bytes as usize, 0);
    read_at(file, &mut bytes, PREFIX_BYTES as u64).map_err(CacheError::io(path))?;
    prefix.body(&bytes).map_err(|why| CacheError::bad(path, why))
}

/// Reads one record into `out`, which has its length.
pub fn record(path: &Path, file: &File, prefix: &Prefix, body: &Body, place: Place, out: &mut [u8]) -> Result<()> {
    let at = body.record(place).filter(|(_, bytes)| *bytes == out.len());
    let (at, _) = at.ok_or(CacheError::Piece("a record of another length was asked for"))?;
    read_at(file, out, at).map_err(CacheError::io(path))?;
    let mut sum = [0; SUM_BYTES as usize];
    read_at(file, &mut sum, at + out.len() as u64).map_err(CacheError::io(path))?;
    if record_sum(prefix.sum, place, out) != u64::from_le_bytes(sum) {
        return Err(CacheError::bad(path, "a record is damaged"));
    }
    Ok(())
}

#[cfg(unix)]
pub fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(unix)]
pub fn write_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
pub fn read_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, bytes, offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        (bytes, offset) = (&mut bytes[n..], offset + n as u64);
    }
    Ok(())
}

#[cfg(windows)]
pub fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        (bytes, offset) = (&bytes[n..], offset + n as u64);
    }
    Ok(())
}
