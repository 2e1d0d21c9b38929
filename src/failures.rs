//! How often a client fails to prove itself: further failing answers of one that fails too often
//! become `too_many_failures`.
//!
//! It never stands in the way of a request that verifies: it is asked only once a request has
//! failed. Memory is fixed, whoever comes: a client is one of [`CELLS`] cells by a hash that
//! nobody outside knows. Two clients may share a cell and then share its rate, which costs a
//! failing request another code and nothing else. Nothing is ever evicted, so whoever has many
//! addresses can fill cells, but cannot empty one.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::peer::client::Client;
use crate::rejection::Rejection;
use crate::throttle;

/// Cells of the table: 256 KiB.
pub const CELLS: usize = 16_384;
/// The window of the rate, in nanoseconds.
const MINUTE: u64 = 60_000_000_000;

/// Failures of all clients, by a clock that starts with the process.
pub struct Failures {
    born: Instant,
    table: Table<RandomState>,
}

impl Failures {
    /// Allows each client so many failures a minute.
    pub fn new(per_minute: u64) -> Self {
        Self { born: Instant::now(), table: Table::new(per_minute, RandomState::new()) }
    }

    /// What a client is told: the rejection, or, if it fails too often, only that.
    pub fn answer(&self, rejection: Rejection, client: Client) -> Rejection {
        if !is_failed_verification(&rejection) {
            return rejection;
        }
        match self.table.count(client.address, self.born.elapsed()) {
            Ok(()) => rejection,
            Err(TooMany { wait, first }) => Rejection::TooManyFailures {
                // Up, so that whoever waits that long does not come too early.
                retry_after: u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(60).max(1),
                instead_of: rejection.code(),
                told: first,
            },
        }
    }
}

/// Whether a request could not be read or did not prove to be genuine and recent. A request that
/// did and breaks the contract, or meets a limit, is no failure of this kind.
fn is_failed_verification(rejection: &Rejection) -> bool {
    use crate::rejection::Malformed::{Query, RepeatedParameter, TwoSignatures};
    matches!(
        rejection,
        Rejection::MalformedRequest(Query(_) | RepeatedParameter | TwoSignatures)
            | Rejection::SignatureMissing { .. }
            | Rejection::SignatureInvalid(_)
            | Rejection::TimestampMissing
            | Rejection::TimestampInvalid
            | Rejection::TimestampExpired { .. }
            | Rejection::TimestampInFuture { .. }
    )
}

/// A client failed too often.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMany {
    /// Until one more failure is allowed.
    pub wait: Duration,
    /// Whether it is the first one beyond the rate for a minute.
    pub first: bool,
}

/// A rate for each client, in fixed memory. Time is given from outside and must not go back by
/// much.
pub struct Table<H> {
    hasher: H,
    cells: Box<[Cell]>,
    /// Nanoseconds that a failure takes up of the minute.
    gap: u64,
}

/// Nanoseconds since the table's beginning.
#[derive(Default)]
struct Cell {
    /// When all failures so far are paid off at the allowed rate.
    paid: AtomicU64,
    /// When an excess is worth telling again.
    tell: AtomicU64,
}

impl<H: BuildHasher> Table<H> {
    /// Allows each client so many failures a minute, all at once if need be; at least one.
    pub fn new(per_minute: u64, hasher: H) -> Self {
        Self { hasher, cells: (0..CELLS).map(|_| Cell::default()).collect(), gap: MINUTE / per_minute.clamp(1, MINUTE) }
    }

    /// Counts a failure of a client at a time.
    ///
    /// # Errors
    /// It is one too many, and does not count.
    pub fn count(&self, client: IpAddr, now: Duration) -> Result<(), TooMany> {
        let cell = self.cell(client);
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX / 2);
        // All of the minute may be used at once, and no more.
        let latest = now + (MINUTE - self.gap);
        let counted = cell.paid.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| {
            (paid <= latest).then_some(paid.max(now) + self.gap)
        });
        counted.map(drop).map_err(|paid| TooMany {
            wait: Duration::from_nanos(paid.saturating_sub(latest)),
            first: throttle::passes(&cell.tell, now, MINUTE),
        })
    }

    fn cell(&self, client: IpAddr) -> &Cell {
        // Whoever has one IPv6 address has the /64 around it.
        let network = match client {
            IpAddr::V4(address) => (4, u64::from(address.to_bits())),
            IpAddr::V6(address) => (6, u64::try_from(address.to_bits() >> 64).unwrap_or_default()),
        };
        let hash = self.hasher.hash_one(network);
        // The remainder is below the number of cells.
        &self.cells[usize::try_from(hash % CELLS as u64).unwrap_or_default()]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::{BuildHasherDefault, DefaultHasher};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn table(per_minute: u64) -> Table<BuildHasherDefault<DefaultHasher>> {
        Table::new(per_minute, BuildHasherDefault::default())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn so_many_at_once_and_then_one_by_one() {
        let (table, client) = (table(3), ip("192.0.2.7"));
        for _ in 0..3 {
            assert_eq!(table.count(client, at(100)), Ok(()));
        }
        assert_eq!(table.count(client, at(100)), Err(TooMany { wait: at(20), first: true }));
        assert_eq!(table.count(client, at(105)), Err(TooMany { wait: at(15), first: false }));
        assert_eq!(table.count(client, at(120)), Ok(()));
        assert_eq!(table.count(client, at(120)), Err(TooMany { wait: at(20), first: false }));
        // Another one has its own.
        assert_eq!(table.count(ip("192.0.2.8"), at(120)), Ok(()));
        // The excess is told again after a minute.
        for _ in 0..2 {
            assert_eq!(table.count(client, at(160)), Ok(()));
        }
        assert_eq!(table.count(client, at(160)), Err(TooMany { wait: at(20), first: true }));
        // After a quiet minute all is as at first.
        for _ in 0..3 {
            assert_eq!(table.count(client, at(300)), Ok(()));
        }
        assert!(table.count(client, at(300)).is_err());
    }

    #[test]
    fn an_ipv6_client_is_its_network_of_64_bits() {
        let table = table(1);
        assert_eq!(table.count(ip("2001:db8:0:1::1"), at(0)), Ok(()));
        assert!(table.count(ip("2001:db8:0:1:ffff::2"), at(0)).is_err());
        assert_eq!(table.count(ip("2001:db8:0:2::1"), at(0)), Ok(()));
    }

    #[test]
    fn many_clients_are_spread_over_the_cells() {
        let table = table(1);
        let cells: HashSet<_> =
            (0..16_384_u32).map(|bits| std::ptr::from_ref(table.cell(IpAddr::V4(bits.into())))).collect();
        // Of as many as there are cells, 63 % are taken if the hash is any good.
        assert!((9_500..11_200).contains(&cells.len()), "{}", cells.len());
    }

    #[test]
    fn what_verified_is_no_failure() {
        let failures = Failures::new(1);
        let client = Client { address: ip("192.0.2.7"), known: true };
        for rejection in
            [Rejection::UnknownAction, Rejection::Overloaded, Rejection::OrderConflict, Rejection::UnknownApp]
        {
            for _ in 0..3 {
                assert_eq!(failures.answer(rejection.clone(), client), rejection);
            }
        }
        let missing = Rejection::SignatureMissing { header: None };
        assert_eq!(failures.answer(missing.clone(), client), missing);
        let told = |told| Rejection::TooManyFailures { retry_after: 60, instead_of: "signature_missing", told };
        assert_eq!(failures.answer(missing.clone(), client), told(true));
        assert_eq!(failures.answer(missing, client), told(false));
    }

    proptest! {
        /// In any minute at most twice the rate: what was saved up, and what comes in meanwhile.
        #[test]
        fn no_minute_has_more_than_twice_the_rate(
            per_minute in 1_u64..50, pauses in vec(0_u64..4_000, 1..300),
        ) {
            let (table, client) = (table(per_minute), ip("192.0.2.7"));
            let (mut now, mut counted) = (Duration::ZERO, Vec::new());
            for pause in pauses {
                now += Duration::from_millis(pause);
                match table.count(client, now) {
                    Ok(()) => counted.push(now),
                    // Whoever waits as long as it says gets through, and not a moment earlier.
                    Err(TooMany { wait, .. }) => {
                        prop_assert!(!wait.is_zero() && wait <= Duration::from_secs(60));
                        prop_assert!(table.count(client, now + wait - Duration::from_nanos(1)).is_err());
                    }
                }
            }
            let most = usize::try_from(2 * per_minute).unwrap();
            for begin in &counted {
                let window = counted.iter().filter(|&time| (*begin..*begin + Duration::from_secs(60)).contains(time));
                prop_assert!(window.count() <= most);
            }
        }

        /// However many others fail, a client that was limited stays so for as long as it was.
        #[test]
        fn nobody_can_have_another_one_forgotten(others in vec(any::<u128>(), 0..2_000), v4: bool) {
            let (table, client) = (table(2), ip("192.0.2.7"));
            while table.count(client, at(0)).is_ok() {}
            for bits in others {
                let other = if v4 { IpAddr::V4(u32::try_from(bits >> 96).unwrap().into()) } else { IpAddr::V6(bits.into()) };
                let _ = table.count(other, at(1));
            }
            prop_assert!(table.count(client, at(29)).is_err());
        }

        /// A client within the rate is never refused, if nobody shares its cell.
        #[test]
        fn the_rate_is_granted(per_minute in 1_u64..2_000, rounds in 1_u64..200) {
            let (table, client) = (table(per_minute), ip("192.0.2.7"));
            for round in 0..rounds {
                let now = Duration::from_nanos(round * (MINUTE / per_minute));
                prop_assert_eq!(table.count(client, now), Ok(()));
            }
        }
    }
}
