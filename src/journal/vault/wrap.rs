//! The keys that seal replies and the keys that wrap those, without anything that is kept or shared:
//! derived from secrets, wrapped and unwrapped, sealed and opened.

use std::collections::HashMap;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::config::scalar::Secret;
use crate::journal::store::{DataKey, Unavailable, Wrap};

/// What the keys that wrap are derived for; their digit counts up if the form ever changes.
const WRAP: &[u8] = b"spigate wrap 1";
/// What the names of those keys are derived for.
const WRAPPER: &[u8] = b"spigate wrapper 1";
const WRAPPER_BYTES: usize = 16;
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// A data key, unwrapped.
pub(super) struct OpenKey {
    pub(super) number: i64,
    pub(super) app: String,
    pub(super) bytes: Zeroizing<[u8; KEY_BYTES]>,
    pub(super) aead: LessSafeKey,
}

impl OpenKey {
    pub(super) fn new(number: i64, app: String, bytes: Zeroizing<[u8; KEY_BYTES]>) -> Result<Self, Unspecified> {
        let aead = sealing_key(&bytes)?;
        Ok(Self { number, app, bytes, aead })
    }
}

/// The keys that wrap data keys.
pub(super) struct Wrapping {
    pub(super) encryption: Option<Wrapper>,
    pub(super) apps: HashMap<String, Vec<Wrapper>>,
}

impl Wrapping {
    pub(super) fn new(apps: impl IntoIterator<Item = (String, Vec<Secret>)>, encryption_key: Option<&Secret>) -> Self {
        let wrappers = |secrets: Vec<Secret>| secrets.iter().filter_map(Wrapper::new).collect();
        Self {
            encryption: encryption_key.and_then(Wrapper::new),
            apps: apps.into_iter().map(|(app, secrets)| (app, wrappers(secrets))).collect(),
        }
    }

    /// What data keys of an app have to be wrapped by.
    fn current(&self, app: &str) -> &[Wrapper] {
        match &self.encryption {
            Some(wrapper) => std::slice::from_ref(wrapper),
            None => self.apps.get(app).map_or(&[], Vec::as_slice),
        }
    }

    /// Unwraps a data key with whatever key opens it: one from before `encryption_key` was given
    /// is wrapped by the app's keys.
    pub(super) fn unwrap(&self, data_key: &DataKey) -> Option<OpenKey> {
        let wrappers = || self.encryption.iter().chain(self.apps.get(&data_key.app).into_iter().flatten());
        let bytes = data_key.wraps.iter().find_map(|wrap| {
            let mut fitting = wrappers().filter(|wrapper| wrapper.id.as_slice() == wrap.wrapper);
            fitting.find_map(|wrapper| wrapper.unwrap(&data_key.app, wrap))
        })?;
        OpenKey::new(data_key.id, data_key.app.clone(), bytes).ok()
    }

    /// The wraps of a data key by all current keys: those that are there and whole, and new ones.
    pub(super) fn wraps(&self, app: &str, bytes: &[u8; KEY_BYTES], there: &[Wrap]) -> Result<Vec<Wrap>, Unavailable> {
        let wrap = |wrapper: &Wrapper| {
            let known = there.iter().find(|wrap| {
                wrapper.id.as_slice() == wrap.wrapper
                    && wrapper.unwrap(app, wrap).is_some_and(|wrapped| *wrapped == *bytes)
            });
            known.map_or_else(|| wrapper.wrap(app, bytes), |wrap| Ok(wrap.clone()))
        };
        self.current(app).iter().map(wrap).collect::<Result<_, _>>().map_err(unsealable)
    }
}

/// A key that wraps data keys: derived, so that it says nothing of the key it came from.
pub(super) struct Wrapper {
    id: [u8; WRAPPER_BYTES],
    aead: LessSafeKey,
}

impl Wrapper {
    fn new(secret: &Secret) -> Option<Self> {
        let key = derive(secret, WRAP)?;
        let mut id = [0; WRAPPER_BYTES];
        id.copy_from_slice(&derive(secret, WRAPPER)?[..WRAPPER_BYTES]);
        Some(Self { id, aead: sealing_key(&key).ok()? })
    }

    fn wrap(&self, app: &str, bytes: &[u8; KEY_BYTES]) -> Result<Wrap, Unspecified> {
        Ok(Wrap { wrapper: self.id.to_vec(), bytes: seal(&self.aead, app.as_bytes(), bytes)? })
    }

    fn unwrap(&self, app: &str, wrap: &Wrap) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
        let bytes = Zeroizing::new(open(&self.aead, app.as_bytes(), &wrap.bytes)?);
        bytes.as_slice().try_into().ok().map(Zeroizing::new)
    }
}

/// HMAC-SHA256 under the secret's text. HMAC takes keys of every length.
fn derive(secret: &Secret, purpose: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).ok()?;
    mac.update(purpose);
    Some(Zeroizing::new(mac.finalize().into_bytes().into()))
}

pub(super) fn random_key() -> Result<Zeroizing<[u8; KEY_BYTES]>, Unavailable> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(&mut *bytes).map_err(|error| Unavailable::new(format!("no random numbers: {error}")))?;
    Ok(bytes)
}

fn sealing_key(bytes: &[u8; KEY_BYTES]) -> Result<LessSafeKey, Unspecified> {
    UnboundKey::new(&AES_256_GCM_SIV, bytes).map(LessSafeKey::new)
}

/// Nonce, ciphertext and tag.
///
/// The nonce is the kernel's. The library's own random numbers begin with 30 ms of measuring the
/// processor's jitter, and would make that a part of every start.
pub(super) fn seal(aead: &LessSafeKey, bound_to: &[u8], text: &[u8]) -> Result<Vec<u8>, Unspecified> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|_| Unspecified)?;
    let mut sealed = Vec::with_capacity(NONCE_BYTES + text.len() + TAG_BYTES);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(text);
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = aead.seal_in_place_separate_tag(nonce, Aad::from(bound_to), &mut sealed[NONCE_BYTES..])?;
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

/// What was sealed; `None` if it was under another key, bound to something else, or is damaged.
pub(super) fn open(aead: &LessSafeKey, bound_to: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = sealed.split_at_checked(NONCE_BYTES)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut text = sealed.to_vec();
    let length = aead.open_in_place(nonce, Aad::from(bound_to), &mut text).ok()?.len();
    text.truncate(length);
    Some(text)
}

pub(super) fn unsealable(_: Unspecified) -> Unavailable {
    Unavailable::new("the cryptographic library failed")
}
