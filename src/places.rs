//! A number of places that may be taken at once. The number may change while some are taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Places(Arc<AtomicUsize>);

/// A place that is taken, until it is dropped.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Places {
    /// Takes a place if fewer than `limit` are taken.
    pub fn take(&self, limit: usize) -> Option<Place> {
        // Made first, so that whichever way this ends, the count does.
        let place = Place(Arc::clone(&self.0));
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        (before < limit).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_limit_of_the_moment() {
        let places = Places::default();
        let two = [places.take(2), places.take(2)];
        assert!(two.iter().all(Option::is_some));
        assert!(places.take(2).is_none());
        let third = places.take(3);
        assert!(third.is_some());
        drop(two);
        assert!(places.take(1).is_none());
        drop(third);
        assert!(places.take(1).is_some());
        assert!(places.take(0).is_none());
    }
}
