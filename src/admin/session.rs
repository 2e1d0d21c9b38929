//! Sessions of browsers that have shown the token: in memory, bounded, ended by time, by signing
//! out, and by another token.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use sha2::{Digest as _, Sha256};

use crate::config::scalar::Secret;

/// How long one lasts.
pub(super) const LASTS: Duration = Duration::from_secs(12 * 3_600);
/// Most at once; beyond, the one that ends first ends now.
const MOST: usize = 256;

type Hash = [u8; 32];

/// See the module. Neither identifiers nor the token are kept, only hashes of them.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<Hash, Session>>);

struct Session {
    ends: Instant,
    /// The token that began it.
    token: Hash,
}

impl Sessions {
    /// Begins a session of somebody who has shown this token; gives its identifier, if there are
    /// random numbers.
    pub(super) fn begin(&self, token: &Secret, now: Instant) -> Option<String> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).ok()?;
        let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut sessions = self.lock();
        sessions.retain(|_, session| session.ends > now);
        if sessions.len() >= MOST
            && let Some(first) = sessions.iter().min_by_key(|(_, session)| session.ends).map(|(hash, _)| *hash)
        {
            sessions.remove(&first);
        }
        sessions.insert(hash(&id), Session { ends: now + LASTS, token: hash(token.expose()) });
        Some(id)
    }

    /// Whether a session of this identifier lasts, and was begun with this token.
    pub(super) fn knows(&self, id: &str, token: &Secret, now: Instant) -> bool {
        // Found by its hash, so that the time that takes says nothing of identifiers.
        let sessions = self.lock();
        sessions.get(&hash(id)).is_some_and(|session| session.ends > now && session.token == hash(token.expose()))
    }

    /// Ends a session.
    pub(super) fn end(&self, id: &str) {
        self.lock().remove(&hash(id));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Hash, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this is the token, in a time that says nothing of where they differ, nor how long it is.
pub(super) fn is_token(shown: &str, token: &Secret) -> bool {
    verify_slices_are_equal(&hash(shown), &hash(token.expose())).is_ok()
}

fn hash(text: &str) -> Hash {
    Sha256::digest(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_by_time_by_signing_out_and_with_its_token() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let (token, other) = (Secret::new("one"), Secret::new("two"));
        let id = sessions.begin(&token, now).unwrap();
        assert_eq!(id.len(), 64);
        assert!(sessions.knows(&id, &token, now + LASTS / 2));
        assert!(!sessions.knows(&id, &token, now + LASTS));
        assert!(!sessions.knows(&id, &other, now));
        assert!(!sessions.knows("", &token, now));
        sessions.end(&id);
        assert!(!sessions.knows(&id, &token, now));
    }

    #[test]
    fn there_are_so_many_and_no_more() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let token = Secret::new("one");
        let ids: Vec<_> =
            (0..=MOST).map(|at| sessions.begin(&token, now + Duration::from_secs(at as u64)).unwrap()).collect();
        assert!(!sessions.knows(&ids[0], &token, now));
        assert!(ids[1..].iter().all(|id| sessions.knows(id, &token, now)));
    }

    #[test]
    fn only_the_token_is_the_token() {
        let token = Secret::new("0123456789");
        assert!(is_token("0123456789", &token));
        for wrong in ["", "012345678", "01234567890", "0123456788"] {
            assert!(!is_token(wrong, &token), "{wrong}");
        }
    }
}
