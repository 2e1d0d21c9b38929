//! Which cases a dialect comes to. Pure: the dialect's kinds of actions and its table of fields in,
//! a list out. A case whose actions or fields a dialect does not have is not in the list.

use std::time::Duration;

use super::Text;
use super::case::{Call, Case, Expect, Fill, Forgery, Group, Instance, Manner, Step};
use super::data;
use crate::dialect::canonical::Encoding;
use crate::dialect::{Action, ActionKind, Dialect, Presence};
use crate::platform::Placement;

/// What else decides which cases there are.
#[derive(Clone, Debug)]
pub struct Options {
    /// Fields whose values the user gave: no case changes them.
    pub own: Vec<(String, String)>,
    /// Whether the gateway refuses what the platform's own examples lack.
    pub strict: bool,
    /// Oldest and farthest accepted time, where it is known.
    pub window: (Duration, Duration),
    /// Whether answers of the backend can be held back.
    pub can_hold: bool,
}

impl Options {
    fn is_own(&self, name: &str) -> bool {
        self.own.iter().any(|(own, _)| own == name)
    }
}

/// The number of a case's order that is not its own.
const PREPARATION: u32 = 99;
/// Copies of an order that are sent at once.
const AT_ONCE: usize = 5;
/// Different orders that are sent at once.
const CROWD: usize = 20;
/// So far from now a time is certainly out of the window.
const FAR: Duration = Duration::from_secs(3_600);
/// Beyond the edge of a known window.
const BEYOND: Duration = Duration::from_secs(60);
/// How late the platform's third try may be sent, with 15 s of waiting each.
const LATE: i64 = -30;
/// How far the platform's clock may be ahead.
const AHEAD: i64 = 5;
/// Long enough for the platform to have given up once.
const LATER: Duration = Duration::from_secs(20);
/// Long enough for what was begun to be over in most backends.
const SETTLED: Duration = Duration::from_secs(5);

/// All cases of a dialect, in the order of a run.
pub fn plan(dialect: &Dialect, options: &Options) -> Vec<Case> {
    let mut planner = Planner { dialect, options, cases: Vec::new() };
    planner.connection();
    planner.lifecycle();
    planner.content();
    planner.delivery();
    planner.refusals();
    planner.real();
    planner.slow();
    planner.cases
}

/// The request that makes the instance which others are about, where a run has none.
pub fn preparation(dialect: &Dialect, trial: bool) -> Option<Step> {
    let create = position(dialect, ActionKind::Create)?;
    let call = call(dialect, create);
    let call = Call { trial, order: call.order.map(|_| PREPARATION), ..call };
    let what = said(&dialect.actions[create], "to have an instance", "准备实例");
    Some(step(what, call, Expect::Shared))
}

/// The request that shows whether genuine ones are accepted at all: a connection test, or else a
/// purchase.
pub fn genuine(dialect: &Dialect) -> Option<Step> {
    let Some(test) = position(dialect, ActionKind::Test) else { return preparation(dialect, true) };
    let what = said(&dialect.actions[test], "to see a genuine request accepted", "确认真实请求被接受");
    Some(step(what, call(dialect, test), Expect::Success))
}

/// The requests that remove an instance.
pub fn removal(dialect: &Dialect, trial: bool) -> Vec<Step> {
    let kinds: &[ActionKind] = if trial { &[ActionKind::Delete] } else { &[ActionKind::Expire, ActionKind::Delete] };
    let actions = kinds.iter().filter_map(|&kind| position(dialect, kind));
    let removal = |action| {
        let what = said(&dialect.actions[action], "cleaning up", "清理");
        step(what, Call { trial, ..call(dialect, action) }, Expect::Success)
    };
    actions.map(removal).collect()
}

/// Whether purchases of the dialect can be marked as trials.
pub fn has_trials(dialect: &Dialect) -> bool {
    let create = dialect.action_of(ActionKind::Create);
    dialect.debug.is_some_and(|debug| create.is_none_or(|create| create.presence[debug] != Presence::Undocumented))
}

fn position(dialect: &Dialect, kind: ActionKind) -> Option<usize> {
    dialect.actions.iter().position(|action| action.kind == kind)
}

/// An ordinary request of an action.
fn call(dialect: &Dialect, action: usize) -> Call {
    let carries = |field: Option<usize>| {
        field.is_some_and(|field| dialect.actions[action].presence[field] != Presence::Undocumented)
    };
    Call {
        action,
        fill: Fill::All,
        fields: Vec::new(),
        order: carries(dialect.order).then_some(1),
        instance: carries(dialect.instance).then_some(Instance::Shared),
        trial: true,
        seconds: 0,
        placement: Placement::Query,
        forgery: None,
        manner: Manner::Plain,
    }
}

fn step(label: Text, call: Call, expect: Expect) -> Step {
    Step { label, call, copies: 1, pause: Duration::ZERO, expect }
}

fn said(action: &Action, en: &str, zh: &str) -> Text {
    match en {
        "" => Text::new(&action.name, &action.name),
        _ => Text::new(format!("{}, {en}", action.name), format!("{}，{zh}", action.name)),
    }
}

struct Planner<'a> {
    dialect: &'a Dialect,
    options: &'a Options,
    cases: Vec<Case>,
}

impl Planner<'_> {
    fn connection(&mut self) {
        if let Some(test) = self.plain(ActionKind::Test) {
            let title = Text::new("The connection test is answered with success", "连通性测试返回成功");
            self.cases.push(Case {
                id: "test".into(),
                group: Group::Connection,
                title,
                real: false,
                steps: vec![test],
            });
        }
    }

    fn lifecycle(&mut self) {
        use ActionKind::{Create, Delete, Expire, Renew, Upgrade};
        let (dialect, options) = (self.dialect, self.options);
        let mut add = |id: &str, title: Text, steps: Option<Vec<Step>>| self.add(id, Group::Lifecycle, title, steps);
        let plain = |kind| Some(plain(dialect, position(dialect, kind)?));
        let shared = |step: Step| Step { expect: Expect::Shared, ..step };
        add(
            "create",
            Text::new("A purchase makes an instance", "购买后创建实例"),
            plain(Create).map(|create| vec![shared(create)]),
        );
        add("renew", Text::new("The instance is renewed", "实例续费"), plain(Renew).map(|renew| vec![renew]));
        let described = |kind, text: &str, en: &str, zh: &str, order| {
            let action = position(dialect, kind)?;
            let fields = described(dialect, options, action, text);
            let call = Call { fields, order: Some(order), ..call(dialect, action) };
            Some(step(said(&dialect.actions[action], en, zh), call, Expect::Success))
        };
        add(
            "upgrade",
            Text::new("The instance is upgraded", "实例升级"),
            described(Upgrade, data::LARGER, "to more", "升配", 1).map(|upgrade| vec![upgrade]),
        );
        add(
            "upgrade-down",
            Text::new("An upgrade may also go down", "升级动作也可能是降配"),
            described(Upgrade, data::SMALLER, "to less", "降配", 1).map(|upgrade| vec![upgrade]),
        );
        let twice = |kind| {
            let first = plain(kind)?;
            let again = Step { label: said(&dialect.actions[first.call.action], "again", "再次"), ..first.clone() };
            Some(vec![first, again])
        };
        add(
            "expire-twice",
            Text::new("Expiry, and the same again: both succeed", "到期，重复到期通知：两次都成功"),
            twice(Expire),
        );
        let cycle = || Some(vec![plain(Expire)?, plain(Renew)?, plain(Expire)?]);
        add(
            "expire-renew-expire",
            Text::new(
                "Expiry, renewal, expiry: the life of an instance is a cycle",
                "到期 → 续费 → 再到期：生命周期可循环",
            ),
            cycle(),
        );
        add(
            "delete-after-expire",
            Text::new("An expired instance is deleted", "到期后删除实例"),
            plain(Expire).and_then(|expire| Some(vec![expire, plain(Delete)?])),
        );
        add(
            "delete-twice",
            Text::new(
                "A trial's instance is deleted without expiry; the same again succeeds too",
                "调试实例可直接删除；重复删除也成功",
            ),
            twice(Delete),
        );
        let unknown = || {
            let action = position(dialect, Renew).or_else(|| position(dialect, Upgrade))?;
            let call = Call { instance: Some(Instance::Invented), ..call(dialect, action) };
            let what = said(&dialect.actions[action], "of an instance that nobody made", "针对不存在的实例");
            (dialect.instance.is_some()).then(|| vec![step(what, call, Expect::Answer)])
        };
        add(
            "unknown-instance",
            Text::new(
                "An instance that nobody made is answered in the protocol's form",
                "针对不存在的实例，按协议格式应答",
            ),
            unknown(),
        );
        // A dialect may have more than one action of a kind, or actions of no kind.
        let first = |kind| position(dialect, kind);
        for (index, action) in dialect.actions.iter().enumerate() {
            if action.kind != ActionKind::Other && first(action.kind) == Some(index) {
                continue;
            }
            let expect = if action.kind == ActionKind::Other { Expect::Answer } else { Expect::Success };
            let title = Text::new(format!("{} is answered", action.name), format!("{} 得到应答", action.name));
            let steps = vec![Step { expect, ..self::plain(dialect, index) }];
            add(&format!("action-{}", action.name), title, Some(steps));
        }
    }

    fn content(&mut self) {
        let Some(create) = position(self.dialect, ActionKind::Create) else { return };
        let (dialect, action) = (self.dialect, &self.dialect.actions[create]);
        let with = |fields: Vec<(String, String)>, en: &str, zh: &str| {
            vec![step(said(action, en, zh), Call { fields, ..call(dialect, create) }, Expect::Success)]
        };
        let texts = [
            ("chinese", data::CHINESE.to_owned(), "Chinese names with spaces arrive", "带空格的中文名称正确送达"),
            ("punctuation", self.punctuation(), "Punctuation arrives: ~ * + / %", "特殊字符正确送达：~ * + / %"),
            ("long", data::long(), "Long values arrive", "超长取值正确送达"),
        ];
        for (id, text, en, zh) in texts {
            let mut fields = described(dialect, self.options, create, &text);
            // What nobody documented shows the encoding, too, and no backend looks into it.
            fields.push((data::UNDOCUMENTED.to_owned(), text));
            self.add(id, Group::Content, Text::new(en, zh), Some(with(fields, "", "")));
        }
        let fields = vec![(data::UNDOCUMENTED.to_owned(), "1".to_owned())];
        self.add(
            "undocumented-parameter",
            Group::Content,
            Text::new("A signed parameter that nobody documented does no harm", "未在文档中的已签名参数不影响处理"),
            Some(with(fields, "with a further parameter", "附加参数")),
        );
        let is_optional = |(field, presence): (usize, &Presence)| {
            let left_out = match presence {
                Presence::Expected => !self.options.strict,
                Presence::Optional => dialect.fields[field].sample.is_some(),
                Presence::Required | Presence::Undocumented => false,
            };
            left_out && ![dialect.order, dialect.debug].contains(&Some(field))
        };
        let has_optional = action.presence.iter().enumerate().any(is_optional);
        let least = Call { fill: Fill::Least, ..call(dialect, create) };
        self.add(
            "required-only",
            Group::Content,
            Text::new("A purchase with nothing but the required fields", "仅含必填字段的购买请求"),
            has_optional
                .then(|| vec![step(said(action, "required fields only", "仅必填字段"), least, Expect::Success)]),
        );
        self.add(
            "without-order-number",
            Group::Content,
            Text::new(
                "A purchase without an order number succeeds, and its copy names the same instance",
                "无订单号的购买成功，其副本返回同一实例",
            ),
            self.may_lack_order(action).then(|| {
                let call = Call { order: None, ..call(dialect, create) };
                let first = step(said(action, "without an order number", "无订单号"), call, Expect::Success);
                let copy = Call { manner: Manner::Identical, ..first.call.clone() };
                vec![first, step(said(action, "byte for byte the same", "逐字节相同的副本"), copy, Expect::Same)]
            }),
        );
        let periods = self.periods();
        self.add(
            "periods",
            Group::Content,
            Text::new("Periods in days, months and years", "以日、月、年为单位的时长"),
            periods,
        );
        for (id, placement, en, zh) in [
            ("signature-in-header", Placement::Header, "only in the header", "仅在请求头中"),
            ("signature-in-both", Placement::Both, "in query and header", "同时在查询串与请求头中"),
        ] {
            let title = Text::new(format!("A signature {en} is found"), format!("能识别{zh}的签名"));
            let steps = dialect.signature.header.as_ref().map(|_| {
                let call = Call { placement, ..call(dialect, create) };
                vec![step(said(action, en, zh), call, Expect::Success)]
            });
            self.add(id, Group::Content, title, steps);
        }
    }

    fn delivery(&mut self) {
        let Some(create) = position(self.dialect, ActionKind::Create) else { return };
        let (dialect, action) = (self.dialect, &self.dialect.actions[create]);
        let purchase = call(dialect, create);
        // Signed a little ago, so that what is signed now is signed anew.
        let first = step(said(action, "", ""), Call { seconds: -2, ..purchase.clone() }, Expect::Success);
        let copy = |en: &str, zh: &str, call: Call| step(said(action, en, zh), call, Expect::Same);
        let identical = Call { manner: Manner::Identical, ..purchase.clone() };
        let mut add = |id: &str, title: Text, steps: Vec<Step>| self.add(id, Group::Delivery, title, Some(steps));
        add(
            "retry-identical",
            Text::new("A byte-identical copy makes no second instance", "逐字节相同的副本不得再建实例"),
            vec![first.clone(), copy("byte for byte the same", "逐字节相同的副本", identical.clone())],
        );
        if purchase.order.is_some() {
            add(
                "retry-resigned",
                Text::new("A retry that is signed anew names the same instance", "重新签名的重试返回同一实例"),
                vec![first.clone(), copy("signed anew", "重新签名", purchase.clone())],
            );
        }
        add(
            "simultaneous",
            Text::new(
                format!("{AT_ONCE} copies at once make one instance"),
                format!("同时到达的 {AT_ONCE} 个副本只建一个实例"),
            ),
            vec![
                Step { label: said(action, "copies at once", "并发副本"), copies: AT_ONCE, ..first.clone() },
                copy("once more", "再来一次", identical.clone()),
            ],
        );
        if purchase.order.is_some() {
            let second = Call { order: Some(2), ..purchase.clone() };
            add(
                "two-purchases",
                Text::new("Two purchases by one customer make two instances", "同一用户购买两次得到两个实例"),
                vec![first.clone(), step(said(action, "another order", "另一订单"), second, Expect::Success)],
            );
        }
        if dialect.time.is_some() {
            for (id, seconds, en, zh) in [
                ("signed-30s-ago", LATE, "signed 30 s ago", "30 秒前签名"),
                ("clock-ahead", AHEAD, "signed 5 s ahead", "时钟快 5 秒"),
            ] {
                let title = Text::new(
                    format!("A request {en} is accepted: clocks differ, and retries come late"),
                    format!("接受{zh}的请求：时钟有偏差，重试会迟到"),
                );
                let late = Call { seconds, ..purchase.clone() };
                add(id, title, vec![step(said(action, en, zh), late, Expect::Success)]);
            }
        }
        if let Some(renew) = position(dialect, ActionKind::Renew) {
            let call = call(dialect, renew);
            let said = |en, zh| said(&dialect.actions[renew], en, zh);
            let before = Call { seconds: -2, ..call.clone() };
            let steps = vec![
                step(said("", ""), before, Expect::Success),
                step(said("signed anew", "重新签名"), call, Expect::Success),
            ];
            let title = Text::new("A renewal that comes again succeeds again", "重复到达的续费再次成功");
            add("renew-retry", title, steps);
        }
    }

    fn refusals(&mut self) {
        let Some(create) = position(self.dialect, ActionKind::Create) else { return };
        let (dialect, action) = (self.dialect, &self.dialect.actions[create]);
        let (age, future) = self.options.window;
        let far =
            |window: Duration| i64::try_from(FAR.max(window.saturating_add(BEYOND)).as_secs()).unwrap_or(i64::MAX);
        let forge = |forgery: Forgery, en: &str, zh: &str| {
            let seconds = match forgery {
                Forgery::Expired => -far(age),
                Forgery::Future => far(future),
                _ => 0,
            };
            let call = Call { seconds, forgery: Some(forgery), ..call(dialect, create) };
            step(said(action, en, zh), call, Expect::Refusal)
        };
        let mut add = |id: &str, en: &str, zh: &str, forgeries: &[Forgery]| {
            let steps = forgeries.iter().map(|&forgery| forge(forgery, en, zh)).collect();
            let title = Text::new(format!("Refused: {en}"), format!("拒绝：{zh}"));
            self.add(id, Group::Refusals, title, Some(steps));
        };
        add("signature-flipped", "one digit of the signature differs", "签名被改动一位", &[Forgery::Flipped]);
        add(
            "signature-missing",
            "no signature, or an empty one",
            "缺少签名或签名为空",
            &[Forgery::Unsigned, Forgery::Empty],
        );
        add("signature-of-other-key", "signed with another key", "使用其他密钥签名", &[Forgery::OtherKey]);
        add("changed-value", "a value changed after signing", "签名后参数值被篡改", &[Forgery::Changed]);
        add("unsigned-parameter", "a parameter added after signing", "签名后追加参数", &[Forgery::Added]);
        add(
            "repeated-parameter",
            "a parameter that stands twice",
            "同一参数出现两次",
            &[Forgery::RepeatedAfter, Forgery::RepeatedBefore],
        );
        if signs_method(dialect) {
            add("other-method", "a signature made for POST", "为 POST 方法生成的签名", &[Forgery::OtherMethod]);
        }
        if dialect.time.is_some() {
            add("time-expired", "signed long ago", "签名时间早已过期", &[Forgery::Expired]);
            add("time-in-future", "signed for a far future", "签名时间在很久以后", &[Forgery::Future]);
            add("time-missing", "signed, but without a time", "已签名但缺少时间", &[Forgery::Timeless]);
            add("time-malformed", "signed, but its time cannot be read", "已签名但时间格式错误", &[Forgery::BadTime]);
        }
    }

    fn real(&mut self) {
        use ActionKind::{Delete, Expire, Renew, Upgrade};
        let Some(create) = position(self.dialect, ActionKind::Create).filter(|_| has_trials(self.dialect)) else {
            return;
        };
        let (dialect, action) = (self.dialect, &self.dialect.actions[create]);
        let trial = call(dialect, create);
        let real = Call { trial: false, ..trial.clone() };
        let steps = vec![
            step(said(action, "as a trial", "调试"), trial, Expect::Success),
            Step {
                label: said(action, "the same order for real", "同一订单正式开通"),
                expect: Expect::Either,
                ..step(Text::default(), real, Expect::Either)
            },
        ];
        let mut add = |id: &str, title: Text, steps: Vec<Step>| {
            self.cases.push(Case { id: id.to_owned(), group: Group::Real, title, real: true, steps });
        };
        add(
            "real-create",
            Text::new(
                "An order first comes as a trial and then, with the same number, for real",
                "同一订单号先调试、后正式开通",
            ),
            steps,
        );
        for (id, kind, en, zh) in [
            ("real-renew", Renew, "A real renewal", "正式续费"),
            ("real-upgrade", Upgrade, "A real upgrade", "正式升级"),
            ("real-expire", Expire, "A real expiry", "正式到期"),
            ("real-delete", Delete, "A real deletion after expiry", "到期后正式删除"),
        ] {
            if let Some(action) = position(dialect, kind) {
                let plain = plain(dialect, action);
                add(id, Text::new(en, zh), vec![Step { call: Call { trial: false, ..plain.call }, ..plain }]);
            }
        }
    }

    fn slow(&mut self) {
        let Some(create) = position(self.dialect, ActionKind::Create) else { return };
        let (dialect, action) = (self.dialect, &self.dialect.actions[create]);
        let purchase = call(dialect, create);
        let mut add = |id: &str, title: Text, steps: Vec<Step>| self.add(id, Group::Slow, title, Some(steps));
        let first = step(said(action, "", ""), purchase.clone(), Expect::Success);
        let late = Call { manner: Manner::Identical, ..purchase.clone() };
        add(
            "late-retry",
            Text::new("A copy 20 s later names the same instance", "20 秒后的副本返回同一实例"),
            vec![
                first.clone(),
                Step { pause: LATER, ..step(said(action, "20 s later", "20 秒后"), late, Expect::Same) },
            ],
        );
        let crowd = Call { manner: Manner::Crowd, ..purchase.clone() };
        add(
            "busy",
            Text::new(
                format!("{CROWD} purchases at once: every one in time, every one an instance of its own"),
                format!("{CROWD} 笔并发购买：均按时应答，各得一个实例"),
            ),
            vec![Step {
                label: said(action, "many at once", "并发购买"), copies: CROWD, call: crowd, ..first.clone()
            }],
        );
        let manner = if self.options.can_hold { Manner::Held } else { Manner::HangUp };
        let given_up = Call { manner, seconds: -2, ..purchase.clone() };
        let again =
            Step { pause: SETTLED, ..step(said(action, "the retry", "重试"), purchase.clone(), Expect::Same) };
        let once_more = step(said(action, "once more", "再来一次"), purchase, Expect::Same);
        self.add(
            "slow-answer",
            Group::Slow,
            Text::new(
                "The platform gives up on a slow answer and comes again: one instance",
                "平台因应答过慢而放弃并重试：仍只有一个实例",
            ),
            Some(vec![
                step(said(action, "the caller gives up", "平台放弃等待"), given_up, Expect::Nothing),
                again,
                once_more,
            ]),
        );
    }

    fn periods(&self) -> Option<Vec<Step>> {
        let kinds = [ActionKind::Renew, ActionKind::Upgrade, ActionKind::Create];
        let dialect = self.dialect;
        let (action, names) = kinds.iter().find_map(|&kind| {
            let action = position(dialect, kind)?;
            let mut names = data::periods(dialect, &dialect.actions[action]);
            names.retain(|name| !self.options.is_own(name));
            (!names.is_empty()).then_some((action, names))
        })?;
        let steps = data::PERIODS.iter().zip(1..).map(|(period, order)| {
            let fields = names.iter().map(|name| ((*name).to_owned(), (*period).to_owned())).collect();
            let call = call(dialect, action);
            let order = call.order.map(|_| order);
            step(said(&dialect.actions[action], period, period), Call { fields, order, ..call }, Expect::Success)
        });
        Some(steps.collect())
    }

    fn punctuation(&self) -> String {
        let delimiters = if self.dialect.canonical.encoding == Encoding::Plain { "" } else { data::DELIMITERS };
        format!("{}{delimiters}", data::PUNCTUATION)
    }

    fn may_lack_order(&self, action: &Action) -> bool {
        self.dialect.order.is_some_and(|order| match action.presence[order] {
            Presence::Expected => !self.options.strict,
            Presence::Optional => true,
            Presence::Required | Presence::Undocumented => false,
        })
    }

    fn plain(&self, kind: ActionKind) -> Option<Step> {
        Some(plain(self.dialect, position(self.dialect, kind)?))
    }

    /// Adds a case, if the dialect has what it takes. Without trials every order is a real one.
    fn add(&mut self, id: &str, group: Group, title: Text, steps: Option<Vec<Step>>) {
        if let Some(steps) = steps.filter(|steps| !steps.is_empty()) {
            self.cases.push(Case { id: id.to_owned(), group, title, real: !has_trials(self.dialect), steps });
        }
    }
}

fn plain(dialect: &Dialect, action: usize) -> Step {
    step(said(&dialect.actions[action], "", ""), call(dialect, action), Expect::Success)
}

/// The fields of an action that describe what is bought, all with this text, except the user's own.
fn described(dialect: &Dialect, options: &Options, action: usize, text: &str) -> Vec<(String, String)> {
    let Some(create) = dialect.action_of(ActionKind::Create) else { return Vec::new() };
    let carried = |name: &&str| {
        let field = dialect.field_index(name);
        field.is_some_and(|field| dialect.actions[action].presence[field] != Presence::Undocumented)
    };
    let names = data::descriptions(dialect, create).into_iter().filter(carried);
    names.filter(|name| !options.is_own(name)).map(|name| (name.to_owned(), text.to_owned())).collect()
}

/// Whether the method is part of what is signed.
fn signs_method(dialect: &Dialect) -> bool {
    let none = crate::query::Params::from_pairs([]);
    dialect.canonical_string("GET", &none).ok() != dialect.canonical_string("POST", &none).ok()
}

#[cfg(test)]
mod tests;
