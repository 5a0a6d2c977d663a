"""The status page in a real browser, on the whole program: what it shows, and what an operator does with it."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect

from pipeline_poc.stand_in import StandIn
from pipeline_poc.testing import NASTY_RECORDS
from pipeline_poc_tests.acceptance.conftest import chromium_in
from pipeline_poc_tests.acceptance.programs import TIMEOUT_S, Programs
from pipeline_poc_tests.acceptance.schedules import stop_ingesting

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

STAGES = ("source", "rawStore", "queue", "workers", "relationalStore")
PLOTS = ("migratedPerS", "backlog", "lagS")
WIDE = (1440, 900)
PHONE = (360, 740)
MOST_MS = TIMEOUT_S * 1000


@dataclass
class Visit:
    """A page that is open, and what happened on it that nobody sees.

    Attributes:
        complaints: Errors and warnings of its console, and dialogs that a script opened.
        hosts: Whom it asked for anything.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def watch(self) -> None:
        """Begin to write down."""
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def number(self, name: str) -> Locator:
        """Return the places that show a number of the overview."""
        return self.page.locator(f'[data-show="{name}"]').first

    def shows(self, name: str, text: str) -> None:
        """Wait until a number has this value."""
        expect(self.number(name)).to_have_text(text)

    def overflow_px(self) -> int:
        """Return by how much the page is wider than the screen."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


Visitor = Callable[..., Visit]


@dataclass(frozen=True, slots=True)
class Shown:
    """An `up` of all tests of this file; each begins where the one before has ended.

    Attributes:
        port: Of the page.
        source: What is ingested.
    """

    programs: Programs
    port: int
    source: StandIn

    def ingest(self) -> None:
        """Ingest what the source serves now."""
        url = f"http://localhost:{self.port}/trigger-ingestion"
        assert httpx.post(url, params={"wait": True}, timeout=TIMEOUT_S + 30, trust_env=False).json()["success"]


@pytest.fixture(scope="module")
def shown(shared: Programs) -> Iterator[Shown]:
    """One `up` on servers, open to everybody on this machine."""
    with StandIn() as source:
        shared.settings["source_url"] = source.url
        stop_ingesting(shared.data_dir)
        with shared.up():
            yield Shown(shared, int(str(shared.settings["web_port"])), source)


@pytest.fixture(scope="module")
def browser(shown: Shown) -> Iterator[Browser]:
    """Chromium, in the environment of the programs."""
    with chromium_in(shown.programs) as browser:
        yield browser


@pytest.fixture
def visit(chromium: str, shown: Shown, browser: Browser) -> Iterator[Visitor]:
    """Opens the page, and waits for its first numbers."""
    contexts = []

    def opened(size: tuple[int, int] = WIDE, scheme: Literal["light", "dark"] = "light") -> Visit:
        contexts.append(browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(MOST_MS)
        visit = Visit(page)
        visit.watch()
        answer = page.goto(f"http://localhost:{shown.port}/pipeline")
        assert answer is not None
        assert answer.ok
        page.wait_for_selector("body[data-ready]")
        return visit

    yield opened
    for context in contexts:
        context.close()


def press(page: Page, button: str) -> None:
    """Go to a button by the Tab key, as somebody without a mouse does, and press it."""
    for _ in range(100):
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.getAttribute('data-action')")
        if focused == button:
            page.keyboard.press("Enter")
            return
    pytest.fail(f"the Tab key does not lead to {button}")


def luminance(page: Page) -> float:
    """Return how light the page's background is, from 0 to 255."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


def test_shows_everything(shown: Shown, visit: Visitor) -> None:
    """The page shows that all is well, on screens wide and narrow, light and dark, and asks no other host."""
    wide = visit()
    wide.shows("rawStore.stored", "100")
    wide.shows("rawStore.migrated", "100")
    wide.shows("rawStore.backlog", "0")
    wide.shows("relationalStore.rows", "100")
    for stage in STAGES:
        status = wide.page.locator(f"#stage-{stage} .status")
        expect(status).to_have_attribute("data-status", "pass")
        expect(status).to_contain_text("pass")
    expect(wide.page.locator("#connection")).to_contain_text("Live")
    expect(wide.page.locator("#checks tbody tr").first).to_be_visible()
    expect(wide.page.locator("#jobs tbody tr").first).to_contain_text("finished")
    for plot in PLOTS:
        drawn = wide.page.locator(f"[data-plot={plot}] .plot")
        expect(drawn.locator("canvas")).to_be_visible()
        expect(drawn).to_have_attribute("aria-label", re.compile(" over the last .*: now "))
    wide.page.locator("[data-plot=backlog] summary").click()
    expect(wide.page.locator("[data-plot=backlog] tbody tr").first).to_be_visible()
    assert wide.overflow_px() <= 0
    phone = visit(PHONE, "dark")
    phone.shows("rawStore.migrated", "100")
    assert phone.overflow_px() <= 0
    assert luminance(phone.page) < 60
    assert luminance(wide.page) > 200
    for each in (wide, phone):
        assert not each.complaints
        assert each.hosts == {f"localhost:{shown.port}"}


def test_pause_and_resume_by_keyboard(shown: Shown, visit: Visitor) -> None:
    """Who has a keyboard only pauses the migration with a reason, sees the backlog wait, and lets it go on."""
    seen = visit()
    page = seen.page
    seen.shows("rawStore.migrated", "100")
    press(page, "pause")
    expect(page.locator("#ask")).to_be_visible()
    page.keyboard.type("<b>upgrade</b> of the store")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#mode")).to_contain_text("<b>upgrade</b> of the store")
    expect(page.locator("[data-action=pause]")).to_be_focused()
    shown.source.behaviour = {"n": "150"}
    press(page, "ingest")
    expect(page.locator("#toast")).to_contain_text("Ingestion started")
    seen.shows("waiting.posts", "50")
    press(page, "resume")
    expect(page.locator("#mode")).to_be_hidden()
    seen.shows("rawStore.migrated", "150")
    seen.shows("waiting.posts", "0")
    assert not seen.complaints


def test_quarantine(shown: Shown, visit: Visitor) -> None:
    """Bad records are listed by reason, shown as text, tried again, and discarded with a reason."""
    shown.source.behaviour = {"malformed": str(len(NASTY_RECORDS))}
    shown.ingest()
    seen = visit()
    page = seen.page
    rows = page.locator("#quarantine tbody tr")
    group = rows.filter(has=page.get_by_text("not_an_object", exact=True))
    expect(group).to_be_visible()
    groups = rows.count()
    group.get_by_role("button", name="Look at").click()
    look = page.locator("#look")
    expect(look.locator("pre").filter(has_text='"just text"')).to_be_visible()
    look.get_by_role("button", name="Close").click()
    group.get_by_role("button", name="Requeue").click()
    expect(page.locator("#toast")).to_contain_text(re.compile(r"Requeued 0 of (\d+); \1 still invalid"))
    group.get_by_role("button", name="Discard").click()
    ask = page.locator("#ask")
    ask.get_by_role("textbox", name="Reason").fill("  ")
    ask.get_by_role("button", name="Discard").click()
    expect(ask).to_contain_text("A reason is needed")
    ask.get_by_role("textbox", name="Reason").fill("made up for a test")
    ask.get_by_role("button", name="Discard").click()
    expect(page.locator("#toast")).to_contain_text("Discarded")
    expect(group).to_have_count(0)
    expect(rows).to_have_count(groups - 1)
    assert not seen.complaints
