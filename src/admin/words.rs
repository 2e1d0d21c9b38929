//! What the pages say, in English and in Chinese.

/// Makes the type of all texts and its two values, so that none is there in one language only.
macro_rules! words {
    ($( $name:ident: $english:literal, $chinese:literal; )*) => {
        /// The texts of one language.
        pub(super) struct Words {
            $( pub(super) $name: &'static str, )*
        }

        pub(super) static ENGLISH: Words = Words { $( $name: $english, )* };
        pub(super) static CHINESE: Words = Words { $( $name: $chinese, )* };
    };
}

words! {
    code: "en", "zh-Hans";
    skip: "Skip to content", "跳到正文";
    navigation: "Pages", "页面";
    overview: "Overview", "概览";
    deliveries: "Deliveries", "投递";
    workbench: "Signature workbench", "签名工作台";
    find: "Find a delivery by order, instance, customer or id", "按订单、实例、客户或编号查找投递";
    find_hint: "Order, instance, customer, id", "订单、实例、客户、编号";
    find_go: "Find", "查找";
    read_only: "Read-only: nothing can be changed here.", "只读模式：此处不能做任何更改。";
    all_utc: "All times are UTC.", "所有时间均为 UTC。";
    language: "Language", "语言";
    theme: "Theme", "主题";
    theme_auto: "auto", "自动";
    theme_light: "light", "浅色";
    theme_dark: "dark", "深色";
    sign_in: "Sign in", "登录";
    sign_out: "Sign out", "退出登录";
    token: "Token", "令牌";
    token_hint: "What admin.token of the configuration holds.", "即配置中 admin.token 的内容。";
    wrong_token: "This is not the token.", "令牌不正确。";
    too_many_tokens: "Too many wrong tokens. Wait a minute, or enter the right one.", "错误的令牌过多。请稍等一分钟，或输入正确的令牌。";
    go_back: "Go back", "返回";

    // Listings
    filter: "Filter", "筛选";
    any: "any", "不限";
    search: "Search", "搜索";
    clear: "Clear", "清除";
    order: "Order", "订单";
    instance: "Instance", "实例";
    customer: "Customer", "客户";
    app: "App", "应用";
    action: "Action", "动作";
    outcome: "Outcome", "结果";
    since: "Received since", "接收时间起";
    until: "Received before", "接收时间止";
    time_hint: "2h, 7d, 2026-11-22T18:00:00Z", "2h、7d、2026-11-22T18:00:00Z";
    received: "Received", "接收时间";
    state: "State", "状态";
    attempts: "Attempts", "尝试";
    debug: "trial run", "调试";
    nothing_named: "No delivery has this as its order, instance, customer or id:", "没有任何投递的订单、实例、客户或编号是：";
    no_delivery_fits: "No delivery fits.", "没有符合条件的投递。";
    stopped_at: "Looked through what was received since", "已查找到此时间之后接收的投递：";
    newest: "Newest", "最新";
    older: "Older", "更早";
    search_on: "Search on", "继续查找";

    // States
    running: "running", "进行中";
    open_refused: "refused by the backend", "后端已拒绝";
    open_failed: "failed", "失败";
    open_decided: "open again", "已重新开放";
    unconfirmed: "may have been executed", "可能已执行";
    held: "held: may have been executed", "已搁置：可能已执行";
    done: "done", "完成";
    unanswered: "confirmed by the backend, never answered to the platform", "后端已确认，但从未应答平台";
    closed: "closed by an operator", "已由操作员关闭";
    duplicate: "confirmed again, with another instance", "再次确认，且实例不同";
    running_means: "An attempt runs. Copies of the order wait for its end and get the same answer.", "正在尝试。同一订单的副本会等待其结束并得到相同的应答。";
    refused_means: "The backend said no, and the platform was told so. Should the order come again, it is forwarded again.", "后端已拒绝，平台也已得知。若该订单再次到来，将再次转发。";
    failed_means: "Nothing was executed. The next copy from the platform is forwarded as a new attempt.", "未执行任何操作。平台的下一次请求将作为新的尝试转发。";
    open_means: "The next copy from the platform is forwarded as a new attempt, with the same Idempotency-Key.", "平台的下一次请求将作为新的尝试转发，Idempotency-Key 不变。";
    unconfirmed_means: "The request was sent, and no usable confirmation came back: the backend may have done it. The next copy is forwarded again, with the same Idempotency-Key.", "请求已发出，但没有收到可用的确认：后端可能已经执行。下一次请求将再次转发，Idempotency-Key 不变。";
    held_means: "The request was sent, and no usable confirmation came back: the backend may have done it. Copies are answered 503 until somebody who looked at the backend decides.", "请求已发出，但没有收到可用的确认：后端可能已经执行。在有人核对后端并作出决定之前，后续请求一律应答 503。";
    done_means: "The backend confirmed it, and the platform was told. Copies get the recorded reply; the backend is not called again.", "后端已确认，平台也已得到应答。后续请求得到记录的应答，不会再调用后端。";
    unanswered_means: "The backend confirmed it, but no answer reached the platform: the customer has paid and may see nothing. Copies get the recorded reply. If none comes, tell the platform, then mark it as settled.", "后端已确认，但没有应答到达平台：客户已付款，却可能什么也看不到。后续请求会得到记录的应答；若不再有请求，请通知平台，然后标记为已了结。";
    closed_means: "An operator decided that it failed. Copies are refused.", "操作员已判定其失败。后续请求一律拒绝。";

    // One delivery
    what_platform_sent: "What the platform sent", "平台发送的内容";
    other_parameters: "Other parameters are not kept in the journal: they may be personal.", "其他参数可能含个人信息，投递日志不予保存。";
    what_backend_answered: "What the backend answered", "后端的应答";
    masked: "What looks like a password, key or token is masked.", "疑似密码、密钥或令牌的内容已隐藏。";
    no_reply: "No valid reply yet.", "尚无有效应答。";
    reply_removed: "The reply is older than journal.retain_replies and was removed.", "该应答已超过 journal.retain_replies 的保留期并被删除。";
    reply_lost: "No configured key opens this reply any more.", "现有配置中没有任何密钥能打开此应答。";
    kind: "Kind", "类型";
    trial: "trial run (debug)", "调试（debug）";
    real: "real", "正式";
    cycle: "Cycle", "周期";
    changed: "Last change", "最后变更";
    confirmed_at: "Confirmed", "确认时间";
    made_instance: "Instance made", "创建的实例";
    answered_at: "Answered to the platform", "告知平台时间";
    never: "never", "从未";
    identifier: "Idempotency-Key", "Idempotency-Key";
    attempt: "Attempt", "尝试";
    rule: "broken rule", "违反的规则";
    request: "request", "请求";
    gateway: "gateway", "网关";
    operator_decided: "An operator decided:", "操作员决定：";
    by: "by", "操作人";
    platform_is_told: "The platform is told:", "告知平台：";
    attempt_confirmed: "confirmed", "已确认";
    attempt_refused: "refused", "已拒绝";
    attempt_failed: "failed", "失败";
    attempt_unconfirmed: "unconfirmed", "未确认";
    attempt_running: "runs", "进行中";

    // Decisions
    retry: "Let it be tried again", "允许重试";
    retry_confirm: "Yes, forward the next copy", "确认，转发下一次请求";
    retry_means: "For an order that the backend has not executed, or may execute twice. The next copy from the platform is forwarded as a new attempt, with the same Idempotency-Key. spigate sends nothing by itself: the platform has to call again.", "适用于后端尚未执行，或可以重复执行的订单。平台的下一次请求将作为新的尝试转发，Idempotency-Key 不变。spigate 不会主动发送：需由平台再次调用。";
    mark_done: "Mark as done", "标记为完成";
    done_confirm: "Yes, it was executed", "确认，已执行";
    mark_done_means: "For an order that the backend has executed. The next copy gets the reply below, and the backend is not called.", "适用于后端已经执行的订单。下一次请求将得到以下应答，不会调用后端。";
    mark_failed: "Mark as failed", "标记为失败";
    failed_confirm: "Yes, it failed for good", "确认，彻底失败";
    mark_failed_means: "For an order that will not be fulfilled. Every copy is refused with the message below. If the backend's confirmation still comes in, that counts.", "适用于不会再履行的订单。后续请求一律以下面的消息拒绝。若后端的确认仍然到达，则以确认为准。";
    settle: "Mark as settled", "标记为已了结";
    settle_confirm: "Yes, they were told", "确认，已告知";
    settle_means: "For an order that is done and of which the platform or the customer was told by other means. It no longer counts as unanswered.", "适用于已完成，且平台或客户已通过其他途径得知的订单。不再计入从未应答。";
    reply_to_give: "Reply", "应答";
    reply_hint: "The JSON that the backend gave or would have given. It has to keep the contract, and is sealed when it is kept.", "后端已给出或本应给出的 JSON。须符合契约，保存时会加密。";
    message_to_platform: "Message for the platform", "给平台的消息";
    your_name: "Your name", "您的姓名";
    why: "Why", "原因";
    audit_hint: "Name and reason are kept with the delivery and logged.", "姓名与原因会随投递保存并写入日志。";
    cancel: "Cancel", "取消";
    name_needed: "Your name and the reason are needed.", "需要填写姓名和原因。";
    decided: "Your decision is recorded.", "您的决定已记录。";
    not_decided: "The decision was not taken", "决定未被采纳";
    run_first: "An attempt runs: wait for its end.", "正在尝试：请等待其结束。";
    is_done: "It is done: the backend's confirmation is recorded.", "已经完成：后端的确认已有记录。";
    is_not_done: "It is not done, so there is nothing to settle.", "尚未完成，没有可了结的内容。";
    instance_reused: "The instance id of the reply belongs to another order of the app.", "应答中的实例 ID 属于该应用的另一个订单。";
    says_no: "The reply says success = false, which is not done: mark it as failed instead.", "该应答为 success = false，并非完成：请改为标记失败。";
    broken_reply: "The reply breaks the contract:", "应答违反契约：";

    // Problems
    problem: "This did not work", "操作未成功";
    not_found: "There is nothing here", "此处没有内容";
    no_such_delivery: "No delivery has this id. It may be older than journal.retain_history.", "没有此编号的投递。它可能已超过 journal.retain_history 的保留期。";
    journal_down: "The journal is not available", "投递日志不可用";
    journal_down_hint: "While this lasts, the gateway answers the platform 503 and forwards nothing. The log says why; docs/runbook.md says what to do.", "在此期间，网关对平台应答 503，不转发任何请求。原因见日志，处理方法见 docs/runbook.md。";
    config_bad: "The configuration on disk cannot be used. The gateway serves by the one before; the log says what is wrong.", "磁盘上的配置无法使用。网关仍按之前的配置服务；问题详见日志。";
    locked_out: "Recorded replies of this app cannot be opened by any configured key:", "此应用已记录的应答无法用任何现有密钥打开：";

    // Overview
    attention: "Needs attention", "需要处理";
    nothing_waits: "Nothing waits for you.", "没有需要您处理的事项。";
    traffic: "Deliveries of the last day", "最近一天的投递";
    sample: "Of the latest deliveries only, since", "仅统计最新的投递，起自";
    last_hour: "Last hour", "最近一小时";
    last_day: "Last day", "最近一天";
    success_rate: "Confirmed", "已确认";
    refusal_rate: "Refused by the backend", "后端拒绝";
    latency: "Backend, median and 95 %", "后端耗时（中位数与 95%）";
    of_day: "of the last day", "最近一天内";
    chart: "Deliveries by hour", "每小时投递数";
    confirmed: "confirmed", "已确认";
    refused: "refused", "已拒绝";
    failed_or_unconfirmed: "failed or unconfirmed", "失败或未确认";
    now: "now", "现在";
    apps: "Apps", "应用";
    skew: "Clock skew, median", "时钟偏差（中位数）";
    keys: "Keys", "密钥";
    key_active: "active", "启用";
    key_retired: "retired", "停用";
    key_not_now: "not valid now", "当前无效";
    key_used: "used", "已用";
    only_observed: "only observed", "仅观察";
    this_gateway: "This gateway", "本网关";
    version: "Version", "版本";
    config_loaded: "Configuration loaded", "配置加载时间";
    journal: "Journal", "投递日志";
    journal_well: "available", "可用";
    memory: "in memory", "内存中";
    since_start: "Skew and uses of keys are counted since the start of this process.", "时钟偏差与密钥使用次数自本进程启动起统计。";
    connections: "Open connections", "打开的连接";
    as_of: "As of", "截至";
    refresh: "Refresh", "刷新";

    // Workbench
    workbench_lead: "Paste a signed URL: it is taken apart and checked with the keys of the apps. No key and no expected signature is ever shown, and nothing that you paste is kept or logged.", "粘贴带签名的 URL：将逐项解析，并用各应用的密钥检查。密钥和期望的签名绝不会显示；粘贴的内容不会保存，也不会写入日志。";
    url: "URL", "URL";
    url_hint: "A URL, a query, a curl command, or a line of a proxy's access log.", "URL、查询串、curl 命令，或代理访问日志中的一行。";
    signature_header: "Signature, if it came in a header", "签名（若通过请求头传递）";
    app_by_path: "by the URL's path", "按 URL 路径判断";
    explain: "Explain", "解释";
    verdict: "Verdict", "结论";
    would_be_accepted: "The gateway would accept this request.", "网关会接受此请求。";
    no_query: "There is no query in this: a URL or a log line with one is needed.", "其中没有查询串：需要带查询串的 URL 或日志行。";
    too_busy: "Somebody else's question is still being worked on. Try again in a moment.", "另一个问题仍在处理中，请稍后再试。";
    topic_app: "app", "应用";
    topic_dialect: "dialect", "方言";
    topic_parameter: "parameter", "参数";
    topic_signed: "what is signed", "被签名的串";
    topic_time: "time", "时间";
    topic_signature: "signature", "签名";
    topic_contract: "contract", "契约";
}

impl Words {
    /// How long ago something was.
    pub(super) fn ago(&self, seconds: i64) -> String {
        let (count, english, chinese) = match seconds.max(0) {
            seconds @ 0..60 => (seconds, "s", "秒"),
            seconds @ 60..3_600 => (seconds / 60, "min", "分钟"),
            seconds @ 3_600..172_800 => (seconds / 3_600, "h", "小时"),
            seconds => (seconds / 86_400, "d", "天"),
        };
        if self.code == CHINESE.code { format!("{count} {chinese}前") } else { format!("{count} {english} ago") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_said_in_the_largest_unit_that_says_enough() {
        for (seconds, english, chinese) in [
            (-5, "0 s ago", "0 秒前"),
            (59, "59 s ago", "59 秒前"),
            (60, "1 min ago", "1 分钟前"),
            (7_200, "2 h ago", "2 小时前"),
            (172_800, "2 d ago", "2 天前"),
        ] {
            assert_eq!((ENGLISH.ago(seconds), CHINESE.ago(seconds)), (english.into(), chinese.into()));
        }
    }
}
