//! The instances that a run made, until they are removed. Pure.

use std::collections::HashSet;

/// Instances of a run.
#[derive(Debug, Default)]
pub struct Instances {
    /// Every one that was ever told for an order.
    known: HashSet<String>,
    /// Those that are there, in the order in which they came.
    there: Vec<Made>,
    /// Those that cases share: for trials, and for real orders.
    shared: [Option<String>; 2],
}

/// An instance that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its id.
    pub id: String,
    /// Whether a trial made it.
    pub trial: bool,
}

impl Instances {
    /// Every instance that was ever told.
    pub fn known(&self) -> &HashSet<String> {
        &self.known
    }

    /// Learns of an instance. One that a real order was told is no trial's any more: to remove it takes
    /// more.
    pub fn made(&mut self, id: &str, trial: bool) {
        self.known.insert(id.to_owned());
        match self.there.iter_mut().find(|made| made.id == id) {
            Some(made) => made.trial &= trial,
            None => self.there.push(Made { id: id.to_owned(), trial }),
        }
    }

    /// Learns that an instance is gone.
    pub fn gone(&mut self, id: &str) {
        self.there.retain(|made| made.id != id);
        for shared in &mut self.shared {
            if shared.as_deref() == Some(id) {
                *shared = None;
            }
        }
    }

    /// Lets other cases use an instance.
    pub fn share(&mut self, id: &str, trial: bool) {
        self.shared[usize::from(trial)] = Some(id.to_owned());
    }

    /// The instance that cases share.
    pub fn shared(&self, trial: bool) -> Option<&str> {
        self.shared[usize::from(trial)].as_deref()
    }

    /// Those that are there.
    pub fn there(&self) -> &[Made] {
        &self.there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_known_but_neither_there_nor_shared() {
        let mut instances = Instances::default();
        instances.made("a", true);
        instances.made("b", false);
        instances.share("a", true);
        assert_eq!((instances.shared(true), instances.shared(false)), (Some("a"), None));
        instances.gone("a");
        assert_eq!(instances.there(), [Made { id: "b".into(), trial: false }]);
        assert_eq!(instances.shared(true), None);
        assert!(instances.known().contains("a"));
    }

    #[test]
    fn an_instance_that_a_real_order_took_over_is_no_trials_any_more() {
        let mut instances = Instances::default();
        instances.made("a", true);
        instances.made("a", false);
        assert_eq!(instances.there(), [Made { id: "a".into(), trial: false }]);
    }
}
