//! Third stop: which app is it for, and may this client call it? Exact match of host and path,
//! nothing is normalized.

use std::collections::HashMap;
use std::sync::Arc;

use crate::app::App;
use crate::peer::client::Client;
use crate::rejection::Rejection;
use crate::stage::receive::Received;

/// The apps by path, then by host. Looking one up costs the same for one app and ten thousand.
pub struct Routes {
    by_path: HashMap<String, AtPath>,
}

#[derive(Default)]
struct AtPath {
    by_host: HashMap<String, Arc<App>>,
    any_host: Option<Arc<App>>,
}

impl Routes {
    /// Arranges apps. Validated configurations have no two with one host and path.
    pub fn new(apps: impl IntoIterator<Item = Arc<App>>) -> Self {
        let mut by_path: HashMap<String, AtPath> = HashMap::new();
        for app in apps {
            let at = by_path.entry(app.config.path.clone()).or_default();
            match app.config.host.clone() {
                Some(host) => {
                    at.by_host.insert(host, app);
                }
                None => at.any_host = Some(app),
            }
        }
        Self { by_path }
    }

    /// Finds the app of a request. An app that names the host comes before one that does not.
    ///
    /// # Errors
    /// `unknown_app`.
    pub fn find(&self, received: &Received<'_>) -> Result<&Arc<App>, Rejection> {
        let at = self.by_path.get(received.path()).ok_or(Rejection::UnknownApp)?;
        let by_host =
            if at.by_host.is_empty() { None } else { at.by_host.get(received.host().to_ascii_lowercase().as_str()) };
        by_host.or(at.any_host.as_ref()).ok_or(Rejection::UnknownApp)
    }
}

/// Lets a client pass that is in the app's `allow_from`, or anybody where that is empty. One whose
/// address is not known is in no list.
///
/// # Errors
/// `client_not_allowed`.
pub fn admit(app: &App, client: Client) -> Result<(), Rejection> {
    let networks = &app.config.allow_from;
    let listed = || client.known && networks.iter().any(|network| network.contains(&client.address));
    if networks.is_empty() || listed() { Ok(()) } else { Err(Rejection::ClientNotAllowed { client }) }
}
