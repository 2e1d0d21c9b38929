//! What a case is: steps that the platform takes, and what has to come of each. Data only.

use std::time::Duration;

use serde::Serialize;

use super::Text;
use crate::platform::Placement;

/// One thing that is tried.
#[derive(Clone, Debug)]
pub struct Case {
    /// Stable name, for `--only` and for programs.
    pub id: String,
    /// What it belongs to.
    pub group: Group,
    /// What it shows.
    pub title: Text,
    /// Whether its requests are real orders, not marked as a trial.
    pub real: bool,
    /// What happens.
    pub steps: Vec<Step>,
}

/// What cases belong to, in the order of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Is anybody there?
    Connection,
    /// The life of an instance, as a trial.
    Lifecycle,
    /// What requests may hold.
    Content,
    /// Copies of an order.
    Delivery,
    /// What must not be accepted.
    Refusals,
    /// Orders that are not marked as a trial.
    Real,
    /// What takes long.
    Slow,
    /// What was made is removed.
    Cleanup,
}

impl Group {
    /// Its stable name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Lifecycle => "lifecycle",
            Self::Content => "content",
            Self::Delivery => "delivery",
            Self::Refusals => "refusals",
            Self::Real => "real",
            Self::Slow => "slow",
            Self::Cleanup => "cleanup",
        }
    }

    /// Its title.
    pub fn title(self) -> Text {
        match self {
            Self::Connection => Text::new("Connection", "连通性"),
            Self::Lifecycle => Text::new("The life of an instance", "实例生命周期"),
            Self::Content => Text::new("What requests may hold", "请求内容"),
            Self::Delivery => Text::new("Copies of an order", "重复与重试"),
            Self::Refusals => Text::new("What must be refused", "必须拒绝的请求"),
            Self::Real => Text::new("Real orders", "正式订单（非调试）"),
            Self::Slow => Text::new("What takes long", "耗时用例"),
            Self::Cleanup => Text::new("Cleaning up", "清理"),
        }
    }
}

/// A request, sent once or several times at once, and what has to come of it.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it is, for the report.
    pub label: Text,
    /// What is sent.
    pub call: Call,
    /// How often it is sent at the same moment, byte for byte.
    pub copies: usize,
    /// How long nothing is done before.
    pub pause: Duration,
    /// What has to come of it.
    pub expect: Expect,
}

/// What is sent.
#[derive(Clone, Debug)]
pub struct Call {
    /// Position of the action in the dialect.
    pub action: usize,
    /// Which fields are filled with samples.
    pub fill: Fill,
    /// Fields with values of the case's own, and further parameters.
    pub fields: Vec<(String, String)>,
    /// Which order of the case it is; `None` sends no number.
    pub order: Option<u32>,
    /// Which instance it is about.
    pub instance: Option<Instance>,
    /// Whether it is marked as a trial, where the action can be.
    pub trial: bool,
    /// When it is signed, in seconds from now.
    pub seconds: i64,
    /// Where its signature travels.
    pub placement: Placement,
    /// What is wrong with it.
    pub forgery: Option<Forgery>,
    /// How it is sent.
    pub manner: Manner,
}

/// How a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Signed now, and the answer is waited for.
    Plain,
    /// The bytes of the step before once more.
    Identical,
    /// Copies sent at once are different orders.
    Crowd,
    /// The caller hangs up soon, as one whose patience is over.
    HangUp,
    /// The backend's answer is held back until the platform's patience is over.
    Held,
}

/// Which fields of an action are filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// All that have a sample.
    All,
    /// Only those without which a request is refused.
    Least,
}

/// Which instance a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instance {
    /// The one that cases of a run share; made where there is none.
    Shared,
    /// One that nobody made.
    Invented,
}

/// What has to come of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// A success; one that makes an instance names one that was never named before.
    Success,
    /// The same, and later cases may use the instance.
    Shared,
    /// A success that names the instance of the steps before, if they told one.
    Same,
    /// A success that may name the instance of the step before, or a new one.
    Either,
    /// An answer in the protocol's form, yes or no.
    Answer,
    /// No success, and no breakdown.
    Refusal,
    /// Nothing: the caller has hung up.
    Nothing,
}

/// What is wrong with a request that must be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Forgery {
    /// One digit of the signature is another.
    Flipped,
    /// There is no signature.
    Unsigned,
    /// The signature is empty.
    Empty,
    /// It is signed with another key.
    OtherKey,
    /// A value was changed after signing.
    Changed,
    /// A parameter was added after signing.
    Added,
    /// The signature was made for another method.
    OtherMethod,
    /// A parameter stands twice, the signed one first.
    RepeatedAfter,
    /// A parameter stands twice, the signed one last.
    RepeatedBefore,
    /// It was signed long ago.
    Expired,
    /// It is signed for a far future.
    Future,
    /// It carries no time, though rightly signed.
    Timeless,
    /// Its time cannot be read, though rightly signed.
    BadTime,
}
