"""The page of a real run, opened in a real browser at the width of a telephone and of a screen."""

import base64
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from playwright.sync_api import Browser, sync_playwright

from benchmarks import execution as runner
from benchmarks import grids
from benchmarks.report import figures
from benchmarks.report.drawing import Picture
from benchmarks.report.export import all_tables
from benchmarks.report.markup import Table
from benchmarks.report.page import page
from benchmarks.report.results import Results, load
from benchmarks.store import Store

WIDTHS = (400, 1400)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The last five keep it from calling its makers.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
COMMAND = "python -m benchmarks run --grid digits"
HOSTILE = "</title></p><script>document.title = 'run'</script><img src=x onerror=\"throw 1\"> & \"quoted\" 'text'"

# What is wrong with an open page, as a list of sentences. Text is looked at where it stands: in the elements that hold
# it themselves. Within .scroll it may be wider than the screen.
INSPECT = """
() => {
  const found = [], wide = window.innerWidth, style = getComputedStyle;
  const rgb = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = color => rgb(color).slice(0, 3)
    .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const background = element => {
    for (let e = element; e; e = e.parentElement)
      if (rgb(style(e).backgroundColor)[3] !== 0) return style(e).backgroundColor;
    return "rgb(255, 255, 255)";
  };
  if (document.documentElement.scrollWidth > wide)
    found.push(`the body scrolls sideways: ${document.documentElement.scrollWidth} > ${wide}`);
  if (parseFloat(style(document.body).fontSize) < 14) found.push("the body's font is under 14 px");
  for (const image of document.images) {
    if (!image.complete || image.naturalWidth === 0) found.push(`image not shown: ${image.alt}`);
    if (!image.alt.trim()) found.push("image without alt");
  }
  for (const element of document.body.querySelectorAll("*")) {
    const text = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join("");
    if (!text || !element.checkVisibility()) continue;
    const box = element.getBoundingClientRect(), what = text.slice(0, 60);
    if (parseFloat(style(element).fontSize) < 14) found.push(`text under 14 px: ${what}`);
    if (!element.closest(".scroll") && (box.left < 0 || box.right > wide)) found.push(`text off the screen: ${what}`);
    const [low, high] = [luminance(style(element).color), luminance(background(element))].sort((a, b) => a - b);
    if ((high + 0.05) / (low + 0.05) < 4.5) found.push(`text too faint: ${what}`);
  }
  return found;
}
"""


@dataclass(frozen=True)
class Seen:
    """What a reader has before them."""

    problems: list[str]
    title: str
    headings: list[str]
    captions: list[str]
    text: str


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        reason = f"expected a browser, one of {', '.join(BROWSERS)}, to open the page in"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two seeds and two epochs of the digits, by real trainings and attacks."""
    store = Store(tmp_path_factory.mktemp("store"))
    grid = grids.digits()
    recipes = tuple((name, replace(recipe, epochs=2, curve_every=1)) for name, recipe in grid.recipes)
    grid = replace(grid, seeds=(0, 1), recipes=recipes)
    for run in grid.runs():
        runner.execute(runner.Job(run, grid.attacks, store.root, store.root))
    return load(grid, store)


@pytest.fixture(scope="module")
def parts(results: Results) -> tuple[dict[str, list[Table]], list[Picture]]:
    return {f"Tables: {name}": made for name, made in all_tables(results, []).items()}, figures.pictures(results)


@pytest.fixture(scope="module")
def document(parts: tuple[dict[str, list[Table]], list[Picture]]) -> str:
    made, pictures = parts
    return page("The digits", command=COMMAND, tables=made, pictures=pictures, notes=["Two seeds of a short training."])


def look(browser: Browser, file: Path, width: int, scheme: str = "light", shot: Path | None = None) -> Seen:
    """Open a file without a network, and see what is wrong with it."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    opened = context.new_page()
    problems: list[str] = []

    def hear(message: object) -> None:
        if message.type in ("error", "warning"):
            problems.append(f"console {message.type}: {message.text}")

    opened.on("console", hear)
    opened.on("pageerror", lambda error: problems.append(f"page error: {error}"))
    opened.on("requestfailed", lambda request: problems.append(f"request failed: {request.url[:80]}"))
    opened.on("request", lambda r: r.url.startswith(("data:", file.as_uri())) or problems.append(f"asks for {r.url}"))
    opened.goto(file.as_uri(), wait_until="load")
    problems += opened.evaluate(INSPECT)
    visible = [[e.inner_text() for e in opened.locator(tag).all() if e.is_visible()] for tag in ("h3", "figcaption")]
    seen = Seen(problems, opened.title(), *visible, opened.inner_text("body"))
    if shot is not None:
        opened.screenshot(path=shot, full_page=True)
    context.close()
    return seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_whole_and_readable(
    browser: Browser,
    parts: tuple[dict[str, list[Table]], list[Picture]],
    document: str,
    tmp_path: Path,
    width: int,
    scheme: str,
) -> None:
    file = tmp_path / "report.html"
    file.write_text(document, encoding="utf-8")
    shots = os.environ.get("PAGE_SHOTS")  # a folder, to look at the page oneself
    seen = look(browser, file, width, scheme, Path(shots) / f"page-{width}-{scheme}.png" if shots else None)
    assert seen.problems == []
    made, pictures = parts
    assert len(pictures) == 7
    titles = [table.title for several in made.values() for table in several]
    assert len(titles) >= 2
    assert seen.headings == [*titles, *(picture.title for picture in pictures)]
    assert seen.captions == [picture.caption for picture in pictures]
    assert COMMAND in seen.text
    assert "Two seeds of a short training." in seen.text
    assert "CE trained, CE attack" in seen.text


def test_wide_content_can_be_scrolled_to_its_end(browser: Browser, document: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(document, encoding="utf-8")
    opened = browser.new_page(viewport={"width": 400, "height": 900})
    opened.goto(file.as_uri())
    regions = opened.locator(".scroll")
    wide = [i for i in range(regions.count()) if regions.nth(i).evaluate("e => e.scrollWidth > e.clientWidth")]
    assert len(wide) >= 6
    for i in wide:
        region = regions.nth(i)
        region.focus()  # by the keyboard as well as by touch
        assert region.evaluate("e => document.activeElement === e")
        assert region.evaluate("e => { e.scrollLeft = 1e6; return e.scrollLeft + e.clientWidth >= e.scrollWidth - 1 }")
    for link in opened.locator("nav a").all():
        assert opened.locator(f'[id="{link.get_attribute("href").removeprefix("#")}"]').count() == 1
    opened.close()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<img src="data:image/png;base64,AAAA" alt="a broken picture">', "image not shown: a broken picture"),
        ('<img src="missing.png" alt="lost">', "request failed: file://"),
        ('<img src="https://example.invalid/x.png" alt="far">', "asks for https://example.invalid/x.png"),
        ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=">', "image without alt"),
        ("<script>console.error('no good')</script>", "console error: no good"),
        ("<script>console.warn('take care')</script>", "console warning: take care"),
        ("<script>throw new Error('ended')</script>", "page error: ended"),
        ('<div style="width: 3000px">wide</div>', "the body scrolls sideways: 30"),
        ('<div style="overflow: hidden"><p style="width: 3000px">cut</p></div>', "text off the screen: cut"),
        ('<p style="font-size: 9px">tiny</p>', "text under 14 px: tiny"),
        ("<style>body { font-size: 12px }</style>", "the body's font is under 14 px"),
        ('<p style="color: #bbb">faint</p>', "text too faint: faint"),
    ],
)
def test_what_is_wrong_with_a_page_is_seen(browser: Browser, tmp_path: Path, body: str, problem: str) -> None:
    file = tmp_path / "bad.html"
    file.write_text(f'<!DOCTYPE html><html lang="en"><title>bad</title><body>{body}</body></html>', encoding="utf-8")
    problems = look(browser, file, 400).problems
    assert any(found.startswith(problem) for found in problems), problems


def test_a_page_of_nothing_wrong_has_no_problems(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "good.html"
    file.write_text('<!DOCTYPE html><html lang="en"><title>good</title><body><p>Text.</p></body></html>')
    assert look(browser, file, 400).problems == []


class Tags(HTMLParser):
    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_text_stays_text(browser: Browser, tmp_path: Path) -> None:
    figure = Figure(figsize=(2, 2))
    figure.subplots().set_title(HOSTILE[:20])
    document = page(
        HOSTILE,
        command=HOSTILE,
        tables={HOSTILE: [Table(HOSTILE, (HOSTILE,), ((HOSTILE,),), (HOSTILE,))]},
        pictures=[Picture("x", HOSTILE, HOSTILE, HOSTILE, figure)],
        notes=[HOSTILE],
    )
    found = Tags(document)
    assert "script" not in {tag for tag, _ in found.tags}
    (image,) = [attributes for tag, attributes in found.tags if tag == "img"]
    assert image["alt"] == HOSTILE
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert found.text.count(HOSTILE) >= 10
    (tmp_path / "page.html").write_text(document, encoding="utf-8")
    seen = look(browser, tmp_path / "page.html", 400)
    assert seen.problems == []
    assert seen.title == HOSTILE
    assert seen.headings == [HOSTILE, HOSTILE]


def test_the_policy_stops_what_escaping_might_have_missed(browser: Browser, tmp_path: Path, document: str) -> None:
    smuggled = "<script>document.title = 'run'</script><img src='https://example.invalid/x.png' alt='x'>"
    (tmp_path / "page.html").write_text(document.replace("</main>", f"{smuggled}</main>"), encoding="utf-8")
    seen = look(browser, tmp_path / "page.html", 1400)
    assert seen.title == "The digits"
    complaints = [problem for problem in seen.problems if "Content Security Policy" in problem]
    assert len(complaints) == 2


def test_the_page_needs_nothing_else(document: str) -> None:
    found = Tags(document)
    links = [a[name] for _, a in found.tags for name in ("src", "href", "srcset", "action", "data") if name in a]
    assert links
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert "url(" not in document
    assert "@import" not in document
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "iframe", "object", "embed", "link", "form", "base"})
    assert found.tags[0] == ("html", {"lang": "en"})
    svgs = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", document)
    assert len(svgs) >= 5
    for svg in svgs:
        references = re.findall(r'(?:href|src)="([^"]*)"', base64.b64decode(svg).decode())
        assert all(reference.startswith(("#", "data:image/png")) for reference in references)


def test_nothing_to_show_is_still_a_page(browser: Browser, tmp_path: Path) -> None:
    document = page("Nothing yet", command=COMMAND, tables={"Tables": []}, pictures=[], notes=["No run has ended."])
    (tmp_path / "page.html").write_text(document, encoding="utf-8")
    seen = look(browser, tmp_path / "page.html", 400)
    assert seen.problems == []
    assert "No run has ended." in seen.text
