//! What to do about a fault: what the protocol demands, what came, how to mend it. Pure.

use serde::Serialize;

use super::Text;
use super::case::{Expect, Forgery};
use super::snippet::{self, Snippet};
use super::verdict::{Fault, Note};

/// What a fault is about.
pub struct About<'a> {
    /// Whether a gateway of our own stands before the backend.
    pub gateway: bool,
    /// The action.
    pub action: &'a str,
    /// What had to come.
    pub expect: Expect,
}

/// A fault as a report tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable name of the rule that is broken.
    pub rule: String,
    /// What the protocol demands.
    pub demanded: Text,
    /// What came.
    pub came: Text,
    /// How to mend it.
    pub fix: Text,
    /// Code that does.
    pub snippets: Vec<Snippet>,
}

impl Finding {
    /// The same, with what came gone through `mask`.
    pub fn map(self, mask: impl Fn(&str) -> String) -> Self {
        let came = Text::new(mask(&self.came.en), mask(&self.came.zh));
        Self { came, ..self }
    }
}

/// Tells a fault.
pub fn finding(fault: &Fault, about: &About<'_>) -> Finding {
    let (demanded, came, fix, snippets) = match fault {
        Fault::Unreachable(_) | Fault::Broken(_) | Fault::TimedOut | Fault::Late(_) => no_answer(fault, about),
        Fault::Unauthorized(status) => unauthorized(*status),
        Fault::Status(status) => self::status(*status, about),
        Fault::ContentType(came) => content_type(came.as_deref(), about),
        Fault::Body(violation) => body(&violation.rule, &violation.detail),
        Fault::Refused => refused(about),
        Fault::SecondInstance => second_instance(about),
        Fault::InstanceReused => (
            Text::new(
                "every order makes an instance with an id of its own, also for the same customer",
                "每笔订单都应得到自己的实例 ID，同一用户再次购买也不例外",
            ),
            Text::new("an instance id that another order already has", "返回了另一订单已使用的实例 ID"),
            Text::new(
                "Make the id of random numbers, not of the customer or a constant.",
                "用随机数生成实例 ID，不要由用户 ID 推导，也不要用常量。",
            ),
            &snippet::NEW_ID[..],
        ),
        Fault::Accepted(forgery) => accepted(*forgery, about),
        Fault::Crashed(status) => (
            Text::new(
                "a request that is not genuine is refused: 401, or 400 where it cannot be read",
                "非真实请求应被拒绝：返回 401，无法解析时返回 400",
            ),
            Text::new(format!("status {status}: something broke"), format!("状态码 {status}：程序出错")),
            Text::new(
                "Catch what can go wrong while signature and time are read (no value, not base64, no time), and answer 401.",
                "捕获读取签名和时间时可能出现的异常（为空、非 base64、非时间），并返回 401。",
            ),
            &snippet::FRESH[..],
        ),
        Fault::LeftOver(ids) => (
            Text::new(
                "every instance can be deleted, a trial's at any time; these could not",
                "实例均可删除，调试实例随时可删；以下实例未能删除",
            ),
            Text::new(ids.join(", "), ids.join(", ")),
            Text::new(
                "Remove them by hand, and see what the delete action answers above.",
                "请手动清除，并查看上文删除动作的应答。",
            ),
            &snippet::HARMLESS[..],
        ),
    };
    Finding { rule: rule(fault), demanded, came, fix, snippets: snippets.to_vec() }
}

type Told = (Text, Text, Text, &'static [Snippet]);

fn rule(fault: &Fault) -> String {
    match fault {
        Fault::Unreachable(_) => "unreachable".to_owned(),
        Fault::Broken(_) => "broken_reply".to_owned(),
        Fault::TimedOut => "timeout".to_owned(),
        Fault::Late(_) => "late".to_owned(),
        Fault::Unauthorized(_) => "unauthorized".to_owned(),
        Fault::Status(_) => "status".to_owned(),
        Fault::ContentType(_) => "content_type".to_owned(),
        Fault::Body(violation) => violation.rule.to_string(),
        Fault::Refused => "refused".to_owned(),
        Fault::SecondInstance => "second_instance".to_owned(),
        Fault::InstanceReused => "instance_id_reused".to_owned(),
        Fault::Accepted(forgery) => format!("accepts_{}", name(*forgery)),
        Fault::Crashed(_) => "crashed".to_owned(),
        Fault::LeftOver(_) => "left_over".to_owned(),
    }
}

fn name(forgery: Forgery) -> &'static str {
    match forgery {
        Forgery::Flipped => "flipped_signature",
        Forgery::Unsigned | Forgery::Empty => "missing_signature",
        Forgery::OtherKey => "other_key",
        Forgery::Changed => "changed_value",
        Forgery::Added => "unsigned_parameter",
        Forgery::OtherMethod => "other_method",
        Forgery::RepeatedAfter | Forgery::RepeatedBefore => "repeated_parameter",
        Forgery::Expired => "expired_time",
        Forgery::Future => "future_time",
        Forgery::Timeless => "missing_time",
        Forgery::BadTime => "malformed_time",
    }
}

fn no_answer(fault: &Fault, about: &About<'_>) -> Told {
    let demanded = Text::new("a complete answer within 15 s", "15 秒内给出完整应答");
    let came = match fault {
        Fault::Unreachable(cause) => Text::new(format!("no connection: {cause}"), format!("无法连接：{cause}")),
        Fault::Broken(cause) => Text::new(format!("a reply that broke off: {cause}"), format!("应答中断：{cause}")),
        Fault::Late(took) => {
            let seconds = took.as_secs_f64();
            Text::new(format!("an answer after {seconds:.1} s"), format!("{seconds:.1} 秒后才应答"))
        }
        _ => Text::new("no answer within 15 s", "15 秒内没有应答"),
    };
    let fix = match fault {
        Fault::Unreachable(_) => Text::new(
            "See that the server runs and listens there, and takes several connections at once.",
            "确认服务已启动、监听正确，并能同时处理多个连接。",
        ),
        Fault::Broken(_) => Text::new(
            "See the backend's log for a crash; Content-Length must be the body's length in bytes, not characters.",
            "查看后端日志是否崩溃；Content-Length 必须是正文的字节数，而非字符数。",
        ),
        _ if about.gateway => Text::new(
            "Do what takes long after answering, or raise backend.timeout: spigate keeps a late result for the retry.",
            "把耗时操作放到应答之后，或调大 backend.timeout：spigate 会为重试保留迟到的结果。",
        ),
        _ => Text::new(
            "Do what takes long after answering; the platform comes again, and a slow create is sent three times.",
            "把耗时操作放到应答之后；否则平台会重试，慢速开通会被调用三次。",
        ),
    };
    (demanded, came, fix, &[])
}

fn unauthorized(status: u16) -> Told {
    (
        Text::new("a genuine request is accepted", "真实请求应被接受"),
        Text::new(
            format!("status {status}, as if the signature or the time were wrong"),
            format!("状态码 {status}，如同签名或时间有误"),
        ),
        Text::new(
            "Is it the key of this app? If so, the string to sign differs: `spigate explain` shows it. Usual: the method \
             line, `+` for a space, `~` or `*` encoded wrongly, parameters that are not documented left out, a window of \
             a few seconds, a header with an underscore dropped by nginx (underscores_in_headers on).",
            "先确认密钥是否属于该应用。若是，则待签名字符串不一致：可用 `spigate explain` 对照。常见原因：缺少方法行、\
             空格编码为 `+`、`~` 或 `*` 编码有误、遗漏未在文档中的参数、时间窗口只有几秒、\
             nginx 丢弃了带下划线的请求头（underscores_in_headers on）。",
        ),
        &[],
    )
}

fn status(status: u16, about: &About<'_>) -> Told {
    let demanded = Text::new("status exactly 200", "状态码必须为 200");
    let came = Text::new(format!("status {status}"), format!("状态码 {status}"));
    let fix = match status {
        300..=399 => Text::new(
            "Redirects are never followed: register the final address, without a missing slash or a login in between.",
            "平台不跟随重定向：请登记最终地址，注意末尾斜杠和登录跳转。",
        ),
        404 | 405 => Text::new(
            format!("Answer {} here: the route or the method is missing.", about.action),
            format!("此处应处理 {}：缺少路由或方法。", about.action),
        ),
        400..=499 => Text::new(
            format!(
                "Answer {} with 200. A refusal, too, is 200 with {{\"success\":false,\"message\":\"why\"}}; any other \
                 status makes the platform come again.",
                about.action
            ),
            format!(
                "对 {} 返回 200。拒绝也应返回 200 和 {{\"success\":false,\"message\":\"原因\"}}；其他状态码会导致平台重试。",
                about.action
            ),
        ),
        _ => Text::new(
            "An exception: see the backend's log. The platform takes any 5xx for no answer and comes again.",
            "发生异常：请查看后端日志。任何 5xx 都会被平台视为无应答并重试。",
        ),
    };
    (demanded, came, fix, &[])
}

fn content_type(came: Option<&str>, about: &About<'_>) -> Told {
    let demanded = if about.gateway {
        Text::new(
            "Content-Type: application/json (a charset is fine behind spigate)",
            "Content-Type: application/json（经 spigate 时可带 charset）",
        )
    } else {
        Text::new(
            "Content-Type: application/json, exactly, without a charset",
            "Content-Type 必须恰好为 application/json，不带 charset",
        )
    };
    let came = match came {
        Some(came) => Text::new(format!("Content-Type: {came}"), format!("Content-Type: {came}")),
        None => Text::new("no Content-Type", "没有 Content-Type"),
    };
    let fix = Text::new(
        "Set the header yourself; most frameworks' default is not what the platform compares with.",
        "请自行设置该响应头；多数框架的默认值与平台要求不一致。",
    );
    (demanded, came, fix, &snippet::CONTENT_TYPE)
}

fn body(rule: &str, detail: &str) -> Told {
    let came = Text::new(detail, detail);
    match rule {
        "empty_body" | "invalid_json" | "not_an_object" | "duplicate_key" => (
            Text::new("a body that is one JSON object and nothing else", "正文必须是且仅是一个 JSON 对象"),
            came,
            Text::new(
                "Write the body with a JSON library, and nothing before or after it: no warning, no BOM, no template.",
                "用 JSON 库生成正文，前后不要有任何内容：警告、BOM 或模板。",
            ),
            &snippet::JSON_BODY,
        ),
        "success_missing" | "success_type" => (
            Text::new("`success` is true or false, as a JSON boolean", "`success` 必须是 JSON 布尔值 true 或 false"),
            came,
            Text::new("Write a boolean, not a text or a number.", "请写布尔值，不要写字符串或数字。"),
            &snippet::SUCCESS,
        ),
        "content_encoding" => (
            Text::new("a body that is not compressed", "正文不得压缩"),
            came,
            Text::new("Switch compression off for this path.", "请对该路径关闭压缩。"),
            &[],
        ),
        _ => (
            Text::new(
                "the members of a success that the protocol names, each of its type",
                "成功应答须包含协议规定的成员，且类型正确",
            ),
            came,
            Text::new(
                "Fill in the member. `spigate demo` shows a whole reply of each action; an id has 1 to 128 characters and is a text.",
                "请补全该成员。`spigate demo` 展示各动作的完整应答；实例 ID 为 1–128 个字符的字符串。",
            ),
            &snippet::NEW_ID,
        ),
    }
}

fn refused(about: &About<'_>) -> Told {
    let demanded = Text::new(
        format!("{} succeeds; success:false is final: the platform does not come again", about.action),
        format!("{} 应成功；success:false 是最终结果，平台不会重试", about.action),
    );
    let came = Text::new("success: false", "success: false");
    let fix = if about.expect == Expect::Same {
        Text::new(
            "A copy of an order gets the answer that the order got, not \"exists already\": the first may have been lost.",
            "同一订单的副本应得到与首次相同的应答，而不是“已存在”：首次应答可能已丢失。",
        )
    } else {
        Text::new(
            "See the message below. If it is about a plan, customer or product of your own, give its name with --field NAME=VALUE. \
             A repeated expire or delete is a success.",
            "请看下方 message。若与您的套餐、用户或产品有关，请用 --field 名称=值 指定。重复的到期或删除应返回成功。",
        )
    };
    (demanded, came, fix, &snippet::HARMLESS)
}

fn second_instance(about: &About<'_>) -> Told {
    let demanded = Text::new(
        "a copy of an order gets the answer that the order got: the platform sends up to three",
        "同一订单的副本应得到相同的应答：平台最多发送三次",
    );
    let came = Text::new("another instance: one order, two instances", "又建了一个实例：一笔订单，两个实例");
    if about.gateway {
        let fix = Text::new(
            "deliver_once = false, so that spigate passes on every copy: switch it on, or remember answers by Idempotency-Key.",
            "deliver_once = false 时 spigate 会转发每个副本：请打开它，或按 Idempotency-Key 记录应答。",
        );
        return (demanded, came, fix, &snippet::ONCE_BEHIND);
    }
    let fix = Text::new(
        "Record each order under a unique key of order number, action and debug before you act, and answer copies from the \
         record; spigate in front does it for you.",
        "处理前先以“订单号 + 动作 + debug”为唯一键登记订单，副本直接返回已记录的应答；前置 spigate 可代劳。",
    );
    (demanded, came, fix, &snippet::ONCE)
}

fn accepted(forgery: Forgery, about: &About<'_>) -> Told {
    let (en, zh, fix_en, fix_zh, snippets): (&str, &str, &str, &str, &'static [Snippet]) = match forgery {
        Forgery::Expired | Forgery::Future | Forgery::Timeless | Forgery::BadTime => (
            "the signed time lies within a window around now, on both sides, and is there",
            "签名时间必须存在，且落在当前时间前后的窗口之内",
            "Check the time after the signature: not older than 5 minutes, not more than 1 minute ahead, and exactly of its form.",
            "验签后检查时间：不早于 5 分钟前，不晚于 1 分钟后，且格式完全正确。",
            &snippet::FRESH,
        ),
        Forgery::RepeatedAfter | Forgery::RepeatedBefore => (
            "a parameter of the protocol stands once",
            "协议参数只能出现一次",
            "Refuse a name that comes twice before anything else: what one part reads first, another reads last.",
            "首先拒绝重复的参数名：不同组件可能分别读取第一个或最后一个值。",
            &snippet::REPEATED,
        ),
        Forgery::Added => (
            "every parameter but the signature is signed, documented or not",
            "除签名外的所有参数都必须参与签名，无论是否在文档中",
            "Build the string to sign from all parameters that came, not from a list of known ones.",
            "用收到的全部参数构造待签名字符串，而不是已知参数列表。",
            &snippet::COMPARE,
        ),
        Forgery::OtherMethod => (
            "the method is part of what is signed",
            "请求方法是签名内容的一部分",
            "Begin the string to sign with the method of the request that came.",
            "待签名字符串应以实际请求的方法开头。",
            &snippet::COMPARE,
        ),
        Forgery::Flipped | Forgery::Unsigned | Forgery::Empty | Forgery::OtherKey | Forgery::Changed => (
            "the signature is made anew from the parameters and the key, and compared whole",
            "必须用参数和密钥重新计算签名，并完整比较",
            "Compute the signature and compare it in constant time; without one, refuse. Whoever finds the URL can order else.",
            "计算签名并以恒定时间比较；没有签名即拒绝。否则任何知道该 URL 的人都能下单。",
            &snippet::COMPARE,
        ),
    };
    let mut fix = Text::new(fix_en, fix_zh);
    if about.gateway {
        fix = Text::new(
            "spigate refuses this unless enforce = false, with which it only observes.",
            "除非设置了 enforce = false（仅观察），spigate 会拒绝此类请求。",
        );
    }
    let came = Text::new("it was accepted", "请求被接受了");
    (Text::new(en, zh), came, fix, if about.gateway { &[] } else { snippets })
}

/// Tells a remark.
pub fn note(note: &Note) -> Text {
    match note {
        Note::Slow(took) => {
            let seconds = took.as_secs_f64();
            Text::new(
                format!(
                    "took {seconds:.1} s; the documentation allows 15 s, but the platform's client was seen to give up after 6 s"
                ),
                format!("耗时 {seconds:.1} 秒；文档允许 15 秒，但曾观察到平台客户端 6 秒即放弃"),
            )
        }
        Note::TrialForReal => Text::new(
            "the real order was told the instance of its trial: make sure that it became a real one",
            "正式订单返回了其调试实例：请确认该实例已转为正式",
        ),
        Note::UnknownAccepted => Text::new(
            "success for an instance that nobody made: a customer may pay and get nothing",
            "对不存在的实例返回了成功：用户可能付了款却什么也没得到",
        ),
        Note::ToldToComeAgain(count) => Text::new(
            format!("{count} of the copies were told to come again, which is allowed"),
            format!("{count} 个副本被要求重试，这是允许的"),
        ),
        Note::CannotRemove(ids) => Text::new(
            format!("the dialect has no action that removes; remove by hand: {}", ids.join(", ")),
            format!("该方言没有删除动作；请手动清除：{}", ids.join("、")),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;
    use crate::dialect::reply::Violation;

    fn faults() -> Vec<Fault> {
        let forgeries = [
            Forgery::Flipped,
            Forgery::Unsigned,
            Forgery::OtherKey,
            Forgery::Changed,
            Forgery::Added,
            Forgery::OtherMethod,
            Forgery::RepeatedAfter,
            Forgery::Expired,
            Forgery::Future,
            Forgery::Timeless,
            Forgery::BadTime,
        ];
        let mut faults = vec![
            Fault::Unreachable("x".into()),
            Fault::Broken("x".into()),
            Fault::TimedOut,
            Fault::Late(Duration::from_secs(16)),
            Fault::Unauthorized(401),
            Fault::Status(404),
            Fault::ContentType(None),
            Fault::Body(Violation::new("invalid_json", "the reply is not valid JSON")),
            Fault::Refused,
            Fault::SecondInstance,
            Fault::InstanceReused,
            Fault::Crashed(500),
            Fault::LeftOver(vec!["i".into()]),
        ];
        faults.extend(forgeries.map(Fault::Accepted));
        faults
    }

    #[test]
    fn every_fault_has_a_rule_of_its_own_and_says_all_of_it_in_both_languages() {
        for gateway in [false, true] {
            let about = About { gateway, action: "CreateAppInstance", expect: Expect::Success };
            let findings: Vec<_> = faults().iter().map(|fault| finding(fault, &about)).collect();
            for finding in &findings {
                for text in [&finding.demanded, &finding.came, &finding.fix] {
                    assert!(!text.en.is_empty() && !text.zh.is_empty(), "{}", finding.rule);
                }
                let chinese = |text: &str| text.chars().any(|char| ('\u{4e00}'..='\u{9fff}').contains(&char));
                assert!(chinese(&finding.demanded.zh) && chinese(&finding.fix.zh), "{}", finding.rule);
                assert!(!chinese(&finding.demanded.en) && !chinese(&finding.fix.en), "{}", finding.rule);
            }
            let rules: HashSet<_> = findings.iter().map(|finding| &finding.rule).collect();
            assert_eq!(rules.len(), findings.len());
        }
    }

    #[test]
    fn a_wrong_media_type_is_mended_in_four_languages() {
        let about = About { gateway: false, action: "TestConnection", expect: Expect::Success };
        let finding = finding(&Fault::ContentType(Some("text/html".into())), &about);
        assert_eq!(finding.came.en, "Content-Type: text/html");
        let languages: Vec<_> = finding.snippets.iter().map(|snippet| snippet.language).collect();
        assert_eq!(languages, ["PHP", "Java", "Node", "Python"]);
    }

    #[test]
    fn advice_differs_where_spigate_stands_in_front() {
        let about = |gateway| About { gateway, action: "a", expect: Expect::Same };
        let bare = finding(&Fault::SecondInstance, &about(false));
        let behind = finding(&Fault::SecondInstance, &about(true));
        assert!(bare.snippets[0].code.contains("INSERT") && behind.snippets[0].code.contains("IDEMPOTENCY_KEY"));
    }
}
