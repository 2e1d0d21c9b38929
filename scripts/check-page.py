"""The journal page in a real browser, as somebody uses it.

Over a running `spigate demo`: every page in both languages, both themes and on a phone; searching,
filtering, paging, opening a delivery, deciding about a held one, the workbench; all of it once more
without JavaScript, and what the keyboard reaches. Nothing may be said on the console, nothing asked
of another host, axe-core may find nothing serious, and a phone may not have to scroll sideways.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}


class Demo:
    """A gateway with deliveries of every kind."""

    def __init__(self, binary):
        self.process = subprocess.Popen([binary, "demo"], stdout=subprocess.PIPE, text=True)
        self.base = self.curl = None
        for line in self.process.stdout:
            if re.fullmatch(r"http://[\d.:]+/\n", line):
                self.base = line.strip().rstrip("/")
            if line.startswith("curl "):
                self.curl = line.strip()
            if line.startswith("Ctrl-C"):
                break
        if not (self.base and self.curl):
            sys.exit("the demo did not say where its page is")

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Browser:
    """A browser's window that complains of what a page must not do."""

    def __init__(self, browser, base, axe, **context):
        self.base, self.axe, self.problems = base, axe, []
        self.context = browser.new_context(base_url=base, locale=context.pop("locale", "en-GB"), **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.page.on("console", lambda message: self.problems.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(f"script: {error}"))
        self.page.on("requestfailed", self._failed)
        self.context.on("request", self._asked)

    def _failed(self, request):
        # Going to the next page, the browser itself gives up what it still loads of this one.
        if request.failure != "net::ERR_ABORTED":
            self.problems.append(f"failed: {request.url}: {request.failure}")

    def _asked(self, request):
        if urlsplit(request.url).netloc != urlsplit(self.base).netloc:
            self.problems.append(f"asked another host: {request.url}")

    def go(self, path):
        answer = self.page.goto(path)
        assert answer.status == 200, (path, answer.status)

    def judge(self, what):
        """What axe-core finds here, and whether the page is wider than its window."""
        self.page.evaluate(self.axe)
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        for violation in found["violations"]:
            if violation["impact"] in ("serious", "critical"):
                targets = [node["html"][:120] for node in violation["nodes"][:3]]
                self.problems.append(f"{what}: axe: {violation['id']}: {violation['help']}: {targets}")
        wide, window = self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        if wide > window:
            self.problems.append(f"{what}: {wide} px wide in a window of {window}")

    def close(self, what):
        self.context.close()
        if self.problems:
            sys.exit(f"{what}:\n" + "\n".join(self.problems))


def held(page):
    """Goes to the delivery that waits for a decision."""
    page.goto("/deliveries?outcome=unconfirmed")
    page.locator("table.rows tbody th a").first.click()
    page.wait_for_selector("ol.timeline")


def use(window, curl):
    """Everything that there is to do, up to the decision."""
    page = window.page
    window.go("/")
    assert "Needs attention" in page.inner_text("main")
    # Search: by a number that is read off the listing.
    window.go("/deliveries")
    order = page.locator("table.rows tbody th a").first.inner_text()
    page.fill("#find", order)
    page.press("#find", "Enter")
    page.wait_for_url(re.compile(r"/deliveries[/?]"))
    assert order in page.inner_text("main"), page.url
    page.fill("#find", "nobody-has-this")
    with page.expect_navigation():
        page.click(".find button")
    assert "nobody-has-this" in page.inner_text("main [role=status]")
    # Filter.
    window.go("/deliveries")
    rows = page.locator("table.rows tbody tr").count()
    page.select_option("#f-app", "broken")
    with page.expect_navigation():
        page.click(".filters button")
    assert 0 < page.locator("table.rows tbody tr").count() < rows
    assert page.input_value("#f-app") == "broken"
    # Page: to the end, and every delivery once.
    window.go("/deliveries?limit=3")
    seen = []
    while True:
        seen += page.locator("table.rows tbody th a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
        if not page.locator("a[rel=next]").count():
            break
        with page.expect_navigation():
            page.click("a[rel=next]")
    assert len(seen) == rows == len(set(seen)), (len(seen), rows)
    # Open one, with its attempts and no password.
    page.goto(seen[-1])
    assert "Attempt 1" in page.inner_text("ol.timeline")
    assert "(redacted)" in page.content() or "No valid reply" in page.content()
    # The workbench.
    window.go("/workbench")
    page.fill("#url", curl)
    with page.expect_navigation():
        page.click("main button.primary")
    assert page.locator("#verdict").count() == 1, page.inner_text("main")
    assert "would accept" in page.inner_text("main"), page.inner_text("main")
    assert "?" not in page.url


def decide(window):
    """A decision about the held delivery, by keyboard alone."""
    page = window.page
    held(page)
    assert "held" in page.inner_text("main .standing")
    page.get_by_role("link", name="Let it be tried again").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/retry")
    page.focus("#by")
    page.keyboard.type("Wang Li")
    page.keyboard.press("Tab")
    page.keyboard.type("The backend has no such tenant.")
    page.keyboard.press("Enter")
    page.wait_for_url("**decided=1")
    text = page.inner_text("main")
    for part in ("Your decision is recorded", "Wang Li", "The backend has no such tenant.", "open again"):
        assert part in text, (part, text)


def switch(window):
    """Language and theme, kept from page to page."""
    page = window.page
    window.go("/deliveries?app=demo")
    with page.expect_navigation():
        page.get_by_role("link", name="简体中文").click()
    assert page.url.endswith("/deliveries?app=demo"), page.url
    assert page.get_attribute("html", "lang") == "zh-Hans" and "投递" in page.inner_text("h1")
    ground = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
    with page.expect_navigation():
        page.get_by_role("link", name="深色").click()
    dark = ground()
    with page.expect_navigation():
        page.get_by_role("link", name="浅色").click()
    assert ground() != dark
    window.go("/workbench")
    assert page.get_attribute("html", "data-theme") == "light" and page.get_attribute("html", "lang") == "zh-Hans"
    with page.expect_navigation():
        page.get_by_role("link", name="English").click()
    assert page.get_attribute("html", "lang") == "en"


def keyboard(window):
    """The first thing that the keyboard reaches skips to the content."""
    page = window.page
    window.go("/deliveries")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.id === 'main'")
    page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px", outline


def live(window):
    """The overview renews itself while nobody has their hands in it."""
    page = window.page
    page.clock.install()
    window.go("/")
    before = page.locator("#live time").last.inner_text()
    # The page's clock runs ahead; by the gateway's, what is shown may still be the same.
    for _ in range(20):
        with page.expect_response(lambda answer: urlsplit(answer.url).path == "/"):
            page.clock.run_for(10_500)
        time.sleep(0.5)
        if page.locator("#live time").last.inner_text() != before:
            return
    raise AssertionError("the overview does not renew itself")


def pictures(browser, base, axe, directory):
    """Each page in each language, theme and width; axe-core looks at all of them."""
    for language, locale in (("en", "en-GB"), ("zh", "zh-CN")):
        for theme in ("light", "dark"):
            for width, viewport in (("desktop", DESKTOP), ("phone", PHONE)):
                window = Browser(browser, base, axe, locale=locale, color_scheme=theme, viewport=viewport)
                page, name = window.page, lambda what: os.path.join(directory, f"{what}-{language}-{theme}-{width}.png")
                window.go("/deliveries?outcome=unconfirmed")
                one = page.locator("table.rows tbody th a").first.get_attribute("href")
                for what, path in (("overview", "/"), ("deliveries", "/deliveries"), ("delivery", one),
                                   ("decide", f"{one}/done"), ("workbench", "/workbench")):
                    window.go(path)
                    window.judge(f"{what}, {language}, {theme}, {width}")
                    page.screenshot(path=name(what), full_page=True)
                window.close(f"{language}, {theme}, {width}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for option in ("--spigate", "--axe", "--screenshots"):
        parser.add_argument(option, required=True)
    options = parser.parse_args()
    os.makedirs(options.screenshots, exist_ok=True)
    with open(options.axe, encoding="utf-8") as file:
        axe = file.read()
    demo = Demo(options.spigate)
    try:
        with sync_playwright() as playwright:
            flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
            pictures(browser, demo.base, axe, options.screenshots)
            for script in (True, False):
                window = Browser(browser, demo.base, axe, viewport=DESKTOP, java_script_enabled=script)
                use(window, demo.curl)
                window.close("with JavaScript" if script else "without JavaScript")
            window = Browser(browser, demo.base, axe, viewport=DESKTOP)
            switch(window)
            keyboard(window)
            live(window)
            window.close("language, theme, keyboard, live")
            # Last, because it can be done once: without JavaScript, so that a form is all it takes.
            window = Browser(browser, demo.base, axe, viewport=DESKTOP, java_script_enabled=False)
            decide(window)
            window.page.screenshot(path=os.path.join(options.screenshots, "decided.png"), full_page=True)
            window.close("a decision")
            browser.close()
    finally:
        demo.stop()
    print(f"the journal page in Chromium: good; screenshots in {options.screenshots}")


if __name__ == "__main__":
    main()
