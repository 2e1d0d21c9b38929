//! Looks from time to time whether one URL of a backend is well, on a connection of its own.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, USER_AGENT};
use http::{HeaderValue, Method, Uri};
use tokio::time::timeout;

use super::connection::Failed;
use super::member::Member;
use super::outgoing::Outgoing;
use crate::config::ProbeConfig;

/// Looks until it is dropped, the first time at once.
pub(super) async fn keep(member: Arc<Member>, probe: ProbeConfig) {
    loop {
        let found = match timeout(probe.timeout, look(&member, probe.path.as_deref())).await {
            Ok(found) => found,
            Err(_) => Err(format!("no answer within {} ms", probe.timeout.as_millis())),
        };
        member.health.probed(found);
        tokio::time::sleep(pause(probe.every, getrandom::u32().unwrap_or(0))).await;
    }
}

/// Up to a tenth longer, by chance, so that many gateways and apps do not look all at once.
fn pause(every: Duration, chance: u32) -> Duration {
    every.saturating_add((every / 10).mul_f64(f64::from(chance) / f64::from(u32::MAX)))
}

async fn look(member: &Member, path: Option<&str>) -> Result<(), String> {
    let mut connection = member.connect().await?;
    let Some(path) = path else { return Ok(()) };
    let target = path.parse::<Uri>().map_err(|error| error.to_string())?;
    let mut request = Outgoing::new(Method::GET, &target, &member.authority);
    request.header(&USER_AGENT, &HeaderValue::from_static("spigate"));
    request.header(&CONNECTION, &HeaderValue::from_static("close"));
    // Only the head is read: dropping the rest closes the connection.
    let status = connection.status(request.write().bytes()).await;
    let status = status.map_err(|(Failed::Unsent(cause) | Failed::Sent(cause))| cause)?;
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    Err(format!("it answered {}", status.as_u16()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_makes_the_pause_up_to_a_tenth_longer() {
        let every = Duration::from_secs(10);
        assert_eq!(pause(every, 0), every);
        assert_eq!(pause(every, u32::MAX), Duration::from_secs(11));
    }
}
