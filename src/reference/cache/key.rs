use crate::tokens::Sequence;

/// The version of keys and segments alike: what an older version wrote has other keys.
pub(super) const VERSION: &str = "2";

pub(super) type Key = [u8; 32];

/// The hash by which the log-probability of a sequence is found.
pub(super) fn key(sequence: &Sequence) -> Key {
    let mut hasher = blake3::Hasher::new();
    hasher.update(VERSION.as_bytes());
    hasher.update(&(sequence.prompt().len() as u64).to_le_bytes());
    hasher.update(&(sequence.ids().len() as u64).to_le_bytes());
    for id in sequence.ids() {
        hasher.update(&id.to_le_bytes());
    }
    // A byte says whether something follows. The numbers above say how much it is.
    hasher.update(&[u8::from(sequence.counted().is_some())]);
    for &counted in sequence.counted().unwrap_or_default() {
        hasher.update(&[u8::from(counted)]);
    }
    hasher.update(&[u8::from(sequence.context().is_some())]);
    hasher.update(sequence.context().map_or(&[], <[u8; 32]>::as_slice));
    *hasher.finalize().as_bytes()
}
