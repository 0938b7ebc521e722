//! Damaged copies of valid files: they get further into a reader than random bytes do.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// A copy with one to four places changed: bits and bytes flipped, numbers at their limits put in,
/// parts left out, repeated or cut off.
pub fn damaged(bytes: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..rng.random_range(1..=4) {
        if bytes.is_empty() {
            break;
        }
        // Headers stand at the beginning of most files, at the end of Parquet's.
        let end = bytes.len().min(1024);
        let place = match rng.random_range(0..3) {
            0 => rng.random_range(0..end),
            1 => bytes.len() - end + rng.random_range(0..end),
            _ => rng.random_range(0..bytes.len()),
        };
        // As in files: many small parts, few large ones.
        let most = bytes.len() - place;
        let longest = 1 << rng.random_range(0..=8);
        let length = rng.random_range(1..=most.min(longest));
        match rng.random_range(0..10) {
            0..=2 => bytes[place] = rng.random(),
            3..=4 => bytes[place] ^= 1 << rng.random_range(0..8),
            5 => {
                let word = [
                    0,
                    1,
                    u64::MAX,
                    i64::MAX as u64,
                    u64::from(u32::MAX),
                    1 << 40,
                ];
                let word = word[rng.random_range(0..word.len())].to_le_bytes();
                let width = most.min([1, 2, 4, 8][rng.random_range(0..4)]);
                bytes[place..place + width].copy_from_slice(&word[..width]);
            }
            6 => drop(bytes.drain(place..place + length)),
            7 => {
                let part = bytes[place..place + length].to_vec();
                let to = rng.random_range(0..=bytes.len());
                bytes.splice(to..to, part);
            }
            8 => {
                let from = rng.random_range(0..=bytes.len() - length);
                bytes.copy_within(from..from + length, place);
            }
            _ if rng.random_range(0..4) == 0 => bytes.truncate(place),
            _ => bytes[place] = bytes[place].wrapping_add(1),
        }
    }
    bytes
}
