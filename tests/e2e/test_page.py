"""The page in a real browser, on a real stack: its values are the API's, it lives without reload, and it acts.

Needs Chromium: the one on PATH, or the one that FRETWORK_TEST_CHROMIUM names. Pictures go to FRETWORK_TEST_ARTEFACTS.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from sqlalchemy import text

from cli.stack import running_stack
from shared import ledger
from shared.errors import SettingError
from shared.records import LabelPolicy, RunConfig
from shared.runs import Run, start_run
from tests.e2e.conftest import Trained
from tests.e2e.stack import Stack
from tests.servers import until

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("trained")]

CONFIG = RunConfig(shard_size=8, labels=LabelPolicy(positive="p_1"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = os.environ.get("FRETWORK_TEST_CHROMIUM") or shutil.which("chromium")
    if executable is None:
        reason = "there is no chromium on PATH"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium has none for root
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=sandbox)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def url(stack: Stack) -> str:
    state = running_stack(stack.home)
    assert state is not None
    assert state.addresses is not None
    assert state.addresses.status_url is not None
    return state.addresses.status_url


@pytest.fixture(scope="module")
def token(stack: Stack) -> str:
    return (stack.home / "status.token").read_text().strip()


@pytest.fixture(scope="module")
def finished(trained: Trained, url: str) -> Run:
    """A run with its records, a model trained on them, and the figures of that model; no worker holds a shard of it.

    A worker says what it holds with its heartbeat: until the next one, the page and the API may show either. One that
    an earlier test killed says what it held for ten minutes, and both show that.
    """
    until(lambda: not holding(url), 60)
    return trained.run


def holding(url: str) -> list[str]:
    """The living workers that say they have shards in hand."""
    workers = get(f"{url}/workers")["workers"]
    return [worker["worker"] for worker in workers if worker["state"] == "alive" and worker["shards"]]


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that must have no console error and ask no other host for anything."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        opened = context.new_page()
        errors: list[str] = []
        hosts: set[str] = set()
        opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("request", lambda request: hosts.add(request.url.split("/")[2].split(":")[0]))
        yield opened
        # a refused act is said by the browser too
        assert [error for error in errors if "401 (Unauthorized)" not in error] == []
        assert hosts <= {"127.0.0.1"}


def held_run(stack: Stack, seed: int) -> tuple[Run, list[ledger.Claim]]:
    """A run that cannot end: its generate shards are claimed here, before any worker sees them."""
    with stack.engine.begin() as connection:
        run = start_run(connection, "docs", CONFIG.model_copy(update={"seed": seed}))
        shards = connection.execute(
            text("SELECT shard_id FROM shards WHERE run_id = :id AND stage = 'generate'"), {"id": run.run_id}
        ).scalars()
        claims = [ledger.claim(connection, shard, "me", lease_s=300) for shard in shards.all()]
    return run, [held for held in claims if held is not None]


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def shown(page: Page) -> dict[str, str]:
    """Each value on the page by its path in the API's answers."""
    pairs = page.eval_on_selector_all("data", "all => all.map(each => [each.dataset.path, each.value])")
    return dict(pairs)


def answered(url: str, run: str, paths: list[str]) -> dict[str, str]:
    answers = {"run": get(f"{url}/runs/{run}"), "queues": get(f"{url}/queues"), "workers": get(f"{url}/workers")}

    def value(path: str) -> str:
        source, _, rest = path.partition(":")
        found = answers[source]
        for part in rest.split("."):
            found = found[int(part)] if isinstance(found, list) else found[part]
        return "" if found is None else str(found)

    return {path: value(path) for path in paths}


def test_every_value_on_the_page_is_the_apis(page: Page, url: str, finished: Run) -> None:
    page.goto(f"{url}/?run={finished.name}")
    values = shown(page)
    assert len(values) > 60
    assert values == answered(url, finished.name, list(values))
    assert page.locator("h1").inner_text().startswith(finished.name)
    assert page.title() == f"{finished.name} · Fretwork"
    records = get(f"{url}/runs/{finished.name}/records?limit=5")["records"]
    assert page.locator("article.record h3").all_inner_texts() == [record["query_text"] for record in records]
    (training,) = get(f"{url}/runs/{finished.name}/training-runs")["training_runs"]
    delta = training["evaluations"][0]["result"]["delta"]["384"]["ndcg@10"]["mean"]
    assert f"{delta:+.4f}" in page.locator("#training table").last.inner_text()
    assert page.locator("#training polyline").count() == 1


def test_the_page_follows_a_run_without_a_reload(page: Page, url: str, stack: Stack) -> None:
    with stack.nobody_writes("queries"):
        run = stack.start("docs", CONFIG.model_copy(update={"seed": 12}))
        page.goto(f"{url}/?run={run.name}")
        page.evaluate("window.untouched = true")
        page.wait_for_selector("#live[data-state=live]")
        assert page.locator("[data-path='run:stages.1.done']").get_attribute("value") == "0"
        assert page.locator("[data-path='run:state']").inner_text() == "running"
        page.wait_for_selector(".stage.generate.works")
    page.wait_for_selector("[data-path='run:state'][value=done]", timeout=60_000)
    page.wait_for_selector("article.record", timeout=20_000)  # records come with the slower sections
    page.wait_for_selector("#throughput polyline", state="attached")  # a level line has no height
    assert page.evaluate("window.untouched")
    values = {path: value for path, value in shown(page).items() if path.startswith("run:")}
    assert values == answered(url, run.name, list(values))


def test_what_a_reader_opened_selected_or_focused_stays(page: Page, url: str, stack: Stack) -> None:
    with stack.nobody_writes("fret_records"):
        run = stack.start("docs", CONFIG.model_copy(update={"seed": 13}))
        page.goto(f"{url}/?run={run.name}")
        page.wait_for_selector("#throughput summary", timeout=30_000)
        page.click("#throughput summary")
        page.focus("button[data-act=pause]")
        before = page.locator("[data-path='run:stages.4.done']").get_attribute("value")
    page.wait_for_selector("#head [data-path='run:state'][value=done]", timeout=60_000)
    page.wait_for_selector("article.record", timeout=20_000)
    assert page.locator("[data-path='run:stages.4.done']").get_attribute("value") != before
    assert page.locator("#throughput details").get_attribute("open") is not None


def test_the_buttons_act_with_the_token_and_say_why_not(page: Page, url: str, stack: Stack, token: str) -> None:
    run, _ = held_run(stack, seed=14)
    page.goto(f"{url}/?run={run.name}")
    page.click("button[data-act=pause]")
    page.fill("#token", "wrong")
    page.click("#ask-yes")
    page.wait_for_selector("#said:not([hidden])")
    assert "not the token" in page.inner_text("#said")
    assert page.locator("[data-path='run:state']").inner_text() == "running"

    page.click("button[data-act=pause]")
    page.fill("#token", token)
    page.press("#token", "Enter")
    page.wait_for_selector("[data-path='run:state'][value=paused]")
    assert "fretwork run resume" in page.inner_text("#head .why")
    assert page.locator("#said").is_hidden()

    page.click("button[data-act=resume]")  # the tab has the token now
    page.wait_for_selector("[data-path='run:state'][value=running]")
    page.click("button[data-act=cancel]")
    page.press("dialog", "Escape")
    assert get(f"{url}/runs/{run.name}")["state"] == "running"
    page.click("button[data-act=cancel]")
    assert not page.locator("#token").is_visible()
    page.click("#ask-yes")
    page.wait_for_selector("[data-path='run:state'][value=cancelled]")
    assert page.locator("button[data-act]").count() == 0


def test_what_died_is_shown_with_its_traceback_and_retried(page: Page, url: str, stack: Stack, token: str) -> None:
    run, claims = held_run(stack, seed=15)
    with stack.engine.begin() as connection:
        for held in claims:
            ledger.fail(connection, held, SettingError("the endpoint <b>has</b> no log-probabilities"))
    page.goto(f"{url}/?run={run.name}")
    page.wait_for_selector(".failed")
    assert "no log-probabilities" in page.locator(".failed summary").first.inner_text()
    assert "<b>has</b>" in page.locator(".failed summary").first.inner_text(), "what an error says is text, not markup"
    page.locator(".failed summary").first.click()
    assert "SettingError" in page.locator(".failed pre").first.inner_text()
    page.click("button[data-act=retry]")
    page.fill("#token", token)
    page.click("#ask-yes")
    page.wait_for_selector("text=8 shards are put back to work")
    page.wait_for_selector("[data-path='run:state'][value=done]", timeout=60_000)
    page.wait_for_selector(".failed", state="detached")


def test_the_page_without_a_run_says_how_to_start_one(page: Page, url: str, finished: Run) -> None:
    page.goto(f"{url}/?run={finished.name}&moved=true")
    assert page.locator(".filters [aria-current]").inner_text() == "positive moved"
    assert page.locator("article.record .moved").count() == page.locator("article.record").count() > 0
    with urllib.request.urlopen(f"{url}/static/page.js", timeout=5) as script:
        assert len(script.read().splitlines()) < 200


def test_it_can_be_used_with_the_keyboard_alone(page: Page, url: str, finished: Run) -> None:
    page.goto(f"{url}/?run={finished.name}")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the run"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('#throughput summary')"):
            break
    page.keyboard.press("Enter")
    assert page.locator("#throughput table").is_visible()


NAMELESS = """() => [...document.querySelectorAll("a, button, input, select, summary, progress, svg[role=img]")].filter(
  each => each.checkVisibility() && !(
    each.textContent.trim() || each.labels?.length || each.ariaLabel || each.getAttribute("aria-labelledby"))
).map(each => each.outerHTML.slice(0, 120))"""
UNTITLED = """() => [...document.querySelectorAll("table")].filter(
  each => !each.caption || [...each.querySelectorAll("th")].some(cell => !cell.scope)).map(each => each.innerText)"""
HEADINGS = """() => [...document.querySelectorAll("main :is(h1, h2, h3, h4)")].map(each => Number(each.tagName[1]))"""
TOO_FAINT = """() => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const linear = value => (value /= 255) <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const ground = element => {
    for (; element; element = element.parentElement) {
      const colour = channels(getComputedStyle(element).backgroundColor);
      if (colour[3] !== 0) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("body *")].filter(each =>
    [...each.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()) && each.checkVisibility()
  ).map(each => {
    const pair = [channels(getComputedStyle(each).color), ground(each)];
    const [light, dark] = pair.map(luminance).sort((a, b) => b - a);
    return [(light + .05) / (dark + .05), each.outerHTML.slice(0, 100)];
  }).filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_can_be_read(
    page: Page, url: str, finished: Run, scheme: Literal["light", "dark"]
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{url}/?run={finished.name}")
    page.wait_for_selector("#live[data-state=live]")
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(UNTITLED) == []
    assert page.evaluate(TOO_FAINT) == []
    levels = page.evaluate(HEADINGS)
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_is_wider_than_a_small_screen(page: Page, url: str, finished: Run, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{url}/?run={finished.name}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_pictures_for_people(page: Page, url: str, finished: Run, tmp_path: Path) -> None:
    folder = Path(os.environ.get("FRETWORK_TEST_ARTEFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, tuple[Literal["light", "dark"], int, int | None]] = {
        "page": ("light", 1280, 1420),  # the README's: without the records
        "page-light": ("light", 1280, None),
        "page-dark": ("dark", 1280, None),
        "page-phone": ("light", 360, None),
    }
    for name, (scheme, width, height) in pictures.items():
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": height or 900})
        page.goto(f"{url}/?run={finished.name}")
        page.wait_for_selector("#live[data-state=live]")
        page.screenshot(path=folder / f"{name}.png", full_page=height is None)
        assert (folder / f"{name}.png").stat().st_size > 20_000
