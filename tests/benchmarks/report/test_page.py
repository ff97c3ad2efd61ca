"""The page of a real run, opened in a real browser at the width of a telephone and of a screen."""

import base64
import csv
import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote

import pytest
from matplotlib.figure import Figure
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from testing import made_up

from benchmarks import grids
from benchmarks.execution import _runner as runner
from benchmarks.report import export
from benchmarks.report.cells import Results, load
from benchmarks.report.claims import claims
from benchmarks.report.drawing import Picture
from benchmarks.report.figures import pictures
from benchmarks.report.headline import Answer
from benchmarks.report.markup import Table
from benchmarks.report.page import Section, index, page
from benchmarks.report.provenance import provenance
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
  for (const details of document.querySelectorAll("details")) details.open = true;
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


# Whether an element is to be seen; what is folded is not.
SHOWN = "e => e.checkVisibility({contentVisibilityAuto: true})"


@dataclass(frozen=True)
class Seen:
    """What a reader has before them, with all that is folded open."""

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


@dataclass(frozen=True)
class Report:
    """A report as it lies on the disk, and what it was made of."""

    results: Results
    file: Path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Two seeds and two epochs of the digits, by real trainings and attacks."""
    store = Store(tmp_path_factory.mktemp("store"))
    grid = grids.digits()
    recipes = tuple((name, replace(recipe, epochs=2, curve_every=1)) for name, recipe in grid.recipes)
    grid = replace(grid, seeds=(0, 1), recipes=recipes)
    for run in grid.runs():
        runner.execute(runner.Job(run, grid.attacks, store.root, store.root))
    results = load(grid, store)
    folder = store.report_folder(grid.name)
    return Report(results, export.write(results, folder, command=COMMAND, facts=provenance(grid, store)))


@pytest.fixture(scope="module")
def strong(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The widest tables that there are, with marks and intervals in every column."""
    folder = tmp_path_factory.mktemp("strong")
    results = made_up.results(grids.strong_digits(), zero=lambda run, attack: 5000)
    return Report(results, export.write(results, folder, command=COMMAND))


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


@contextmanager
def opened(browser: Browser, file: Path, width: int = 1400, **options: object) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
    shown = context.new_page()
    shown.goto(file.as_uri())
    yield shown
    context.close()


def table_of(shown: Page, title: str) -> Locator:
    return shown.locator("table", has=shown.locator("caption", has_text=title))


def rows_of(table: Locator) -> list[list[str]]:
    script = "t => [...t.tBodies].flatMap(b => [...b.rows]).map(r => [...r.cells].map(c => c.textContent))"
    return [[text.replace("\u00a0", " ") for text in row] for row in table.evaluate(script)]


def filled(table: Table) -> list[list[str]]:
    """The rows, with what heads a section before each."""
    return [[section[0][0], *row[1:]] for section in table.sections for row in section]


def downloaded(shown: Page, button: Locator) -> tuple[str, bytes]:
    with shown.expect_download() as download:
        button.click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_whole_and_readable(browser: Browser, digits: Report, width: int, scheme: str) -> None:
    shots = os.environ.get("PAGE_SHOTS")  # a folder, to look at the page oneself
    seen = look(browser, digits.file, width, scheme, Path(shots) / f"page-{width}-{scheme}.png" if shots else None)
    assert seen.problems == []
    results = digits.results
    tables = export.all_tables(results, claims(results))
    titles = [table.title for name, several in tables.items() for table in several if name != "claims"]
    drawn = pictures(results)
    assert len(drawn) == 7
    assert sorted(seen.headings) == sorted(
        [*titles, *(picture.title for picture in drawn), "Test accuracy on digits, from no attack to the worst case"]
    )
    assert sorted(seen.captions) == sorted(picture.caption for picture in drawn)
    versions = re.search(r"torch ([\d.]+)", seen.text)
    assert versions
    assert version("torch").startswith(versions[1])
    assert COMMAND in seen.text
    assert "CE trained, CE attack" in seen.text


def test_every_link_leads_to_a_file_or_a_part_of_the_page(browser: Browser, digits: Report) -> None:
    with opened(browser, digits.file, java_script_enabled=False) as shown:
        links = [link.get_attribute("href") for link in shown.locator("a").all()]
        for part in [link[1:] for link in links if link.startswith("#")]:
            assert shown.locator(f'[id="{part}"]').count() == 1
    files = {link for link in links if not link.startswith("#")}
    beside = {path.name for path in digits.file.parent.iterdir()} - {"index.html", "summary.json"}
    assert files == beside


def test_the_first_screen_holds_the_verdict_and_the_whole_headline_table(browser: Browser, strong: Report) -> None:
    with opened(browser, strong.file) as shown:
        for seen in (shown.locator(".verdict"), shown.locator("table").first):
            box = seen.bounding_box()
            assert box["y"] >= 0
            assert box["y"] + box["height"] <= 900
            assert box["x"] + box["width"] <= 1400
        assert "worst case" in shown.locator("table").first.inner_text()
    with opened(browser, strong.file, 400) as shown:
        box = shown.locator(".verdict strong").bounding_box()
        assert box["y"] + box["height"] <= 900
        frame = shown.locator(".scroll").first
        assert frame.evaluate("e => e.scrollWidth <= e.clientWidth")


def test_no_table_or_figure_is_cut_off_on_a_screen(browser: Browser, strong: Report) -> None:
    with opened(browser, strong.file) as shown:
        shown.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        frames = shown.locator(".scroll")
        assert frames.count() >= 6
        for frame in frames.all():
            assert frame.evaluate("e => e.scrollWidth <= e.clientWidth"), frame.get_attribute("aria-label")
        worst = table_of(shown, "Strong attacks").locator("thead th").last
        assert worst.inner_text().startswith("worst")
        assert worst.bounding_box()["x"] + worst.bounding_box()["width"] <= 1400


def test_wide_content_can_be_scrolled_to_its_end(browser: Browser, digits: Report) -> None:
    with opened(browser, digits.file, 400) as shown:
        shown.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        regions = shown.locator(".scroll")
        wide = [i for i in range(regions.count()) if regions.nth(i).evaluate("e => e.scrollWidth > e.clientWidth")]
        assert len(wide) >= 6
        for i in wide:
            region = regions.nth(i)
            region.focus()  # by the keyboard as well as by touch
            assert region.evaluate("e => document.activeElement === e")
            assert region.evaluate(
                "e => { e.scrollLeft = 1e6; return e.scrollLeft + e.clientWidth >= e.scrollWidth - 1 }"
            )


@pytest.mark.parametrize("scripts", [True, False])
def test_sections_are_listed_beside_the_page_or_folded_above_it(
    browser: Browser, strong: Report, scripts: bool
) -> None:
    with opened(browser, strong.file, java_script_enabled=scripts) as shown:
        link = shown.locator("nav a", has_text="Gradient masking")
        assert link.bounding_box()["width"] > 0
        table = table_of(shown, "Masked gradients")
        assert not table.evaluate(SHOWN)
        link.click()
        assert table.evaluate(SHOWN)
        assert 0 <= shown.locator("h2", has_text="Gradient masking").bounding_box()["y"] <= 200
    with opened(browser, strong.file, 400, java_script_enabled=scripts) as shown:
        link = shown.locator("nav a").first
        assert not link.evaluate(SHOWN)
        shown.locator("nav summary").focus()
        shown.keyboard.press("Enter")
        assert link.evaluate(SHOWN)


def test_without_a_script_all_is_there_and_nothing_waits_for_one(browser: Browser, strong: Report) -> None:
    with opened(browser, strong.file, java_script_enabled=False) as shown:
        assert shown.locator("button, input").count() == 0
        (claimed,) = export.all_tables(strong.results, claims(strong.results))["claims"]
        assert [row[-1] for row in rows_of(table_of(shown, claimed.title))] == [row[-1] for row in claimed.rows]
        shown.emulate_media(media="print")
        for table in shown.locator("table").all():
            assert table.evaluate(SHOWN)


def test_a_click_on_a_header_sorts_up_then_down_then_not_at_all(browser: Browser, strong: Report) -> None:
    with opened(browser, strong.file) as shown:
        table = table_of(shown, "The paper's claims")
        head = table.locator("th", has_text="effect")
        before = table.inner_html()
        head.locator("button").focus()
        shown.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        effects = [row[3] for row in rows_of(table)]
        numbers = [float(text.split()[0]) for text in effects if re.match(r"[+-]\d", text)]
        assert len(numbers) > 20
        assert numbers == sorted(numbers)
        assert effects[-1] == ""
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        assert [row[3] for row in rows_of(table)][: len(numbers)] != effects[: len(numbers)]
        (claimed,) = export.all_tables(strong.results, claims(strong.results))["claims"]
        assert sorted(rows_of(table)) == sorted(filled(claimed)), "sorting loses and invents no row"
        head.locator("button").click()
        assert table.inner_html() == before


def test_rows_are_filtered_by_what_is_typed_and_downloaded_as_shown(browser: Browser, strong: Report) -> None:
    (claimed,) = export.all_tables(strong.results, claims(strong.results))["claims"]
    with opened(browser, strong.file) as shown:
        table = table_of(shown, claimed.title)
        tools = shown.locator(".tools", has=shown.locator("input")).first
        name, everything = downloaded(shown, tools.get_by_role("button"))
        assert name == "The-paper-s-claims.csv"
        assert list(csv.reader(io.StringIO(everything.decode()))) == [list(claimed.header), *filled(claimed)]
        tools.get_by_label("Filter rows").fill("worst case")
        expected = [row for row in filled(claimed) if "worst case" in " ".join(row).lower()]
        assert 5 <= len(expected) < len(claimed.rows)
        assert rows_of(table) == expected
        assert str(len(expected)) in tools.get_by_role("status").inner_text()
        _, some = downloaded(shown, tools.get_by_role("button"))
        assert list(csv.reader(io.StringIO(some.decode()))) == [list(claimed.header), *expected]
        tools.get_by_label("Filter rows").fill("")
        assert len(rows_of(table)) == len(claimed.rows)


def test_a_figure_downloads_as_svg_and_png_from_the_page_alone(
    browser: Browser, digits: Report, tmp_path: Path
) -> None:
    alone = tmp_path / "moved.html"
    alone.write_bytes(digits.file.read_bytes())
    with opened(browser, alone) as shown:
        figure = shown.locator("figure").first
        name, svg = downloaded(shown, figure.locator("a", has_text=".svg"))
        assert name == "figure_1-digits.svg"
        assert svg == (digits.file.parent / name).read_bytes()
        name, png = downloaded(shown, figure.locator("a", has_text=".png"))
        assert name == "figure_1-digits.png"
        with Image.open(io.BytesIO(png)) as ours, Image.open(digits.file.parent / name) as theirs:
            assert ours.width / ours.height == pytest.approx(theirs.width / theirs.height, rel=0.01)
            assert ours.width >= 1000
            assert len(ours.convert("RGB").getcolors(1 << 24)) > 10


def test_the_list_of_grids_has_each_with_its_verdict(browser: Browser, digits: Report, tmp_path: Path) -> None:
    for name in ("one", "two & <b>"):
        shutil.copytree(digits.file.parent, tmp_path / name)
    (tmp_path / "older").mkdir()
    (tmp_path / "older/index.html").write_text("of an earlier version")
    for name, text in (("broken", "{"), ("list", "[]"), ("deep", '{"verdict": {"a": 1}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").touch()
        (tmp_path / name / "summary.json").write_text(text)
    file = export.write_index(tmp_path)
    assert look(browser, file, 400).problems == []
    with opened(browser, file) as shown:
        links = [link.get_attribute("href") for link in shown.locator("a").all()]
        assert [unquote(link) for link in links] == [
            f"{path.parent.name}/index.html" for path in sorted(tmp_path.glob("*/index.html"))
        ]
        assert shown.inner_text("body").count("Robustness is not measured") == 2
        shown.locator("a", has_text="digits").first.click()
        assert shown.title() == "HR loss: grid digits"


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
    table = Table(HOSTILE, (HOSTILE,), ((HOSTILE,),), (HOSTILE,))
    document = page(
        HOSTILE,
        answers=[Answer("nothing", HOSTILE, HOSTILE)],
        first=[table, Picture("x", HOSTILE, HOSTILE, HOSTILE, figure)],
        sections=[Section(HOSTILE[1:], [table], [HOSTILE])],
        command=HOSTILE,
        facts={HOSTILE: HOSTILE},
        files=[HOSTILE],
        notes=[HOSTILE],
    )
    found = Tags(document)
    assert [tag for tag, _ in found.tags].count("script") == 1
    (image,) = [attributes for tag, attributes in found.tags if tag == "img"]
    assert image["alt"] == HOSTILE
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert found.text.count(HOSTILE) >= 10
    (tmp_path / "page.html").write_text(document, encoding="utf-8")
    seen = look(browser, tmp_path / "page.html", 400)
    assert seen.problems == []
    assert seen.title == HOSTILE
    assert seen.headings == [HOSTILE, HOSTILE, HOSTILE]
    entry = dict.fromkeys(("grid", "what", "made", "verdict", "page"), HOSTILE)
    (tmp_path / "list.html").write_text(index([entry]), encoding="utf-8")
    seen = look(browser, tmp_path / "list.html", 400)
    assert seen.problems == []
    assert seen.text.count(HOSTILE) >= 2


def test_the_policy_stops_what_escaping_might_have_missed(browser: Browser, digits: Report, tmp_path: Path) -> None:
    smuggled = (
        "<script>document.title = 'run'</script><img src='https://example.invalid/x.png' alt='x'>"
        "<script src='https://example.invalid/x.js'></script>"
    )
    file = tmp_path / "page.html"
    file.write_text(digits.file.read_text().replace("</main>", f"{smuggled}</main>"), encoding="utf-8")
    seen = look(browser, file, 1400)
    assert seen.title == "HR loss: grid digits"
    complaints = [problem for problem in seen.problems if "Content Security Policy" in problem]
    assert len(complaints) == 3
    with opened(browser, file) as shown:
        assert shown.locator("th button").count() > 10, "the page's own script is run"


def test_a_script_changed_by_a_letter_is_not_run(browser: Browser, digits: Report, tmp_path: Path) -> None:
    changed = digits.file.read_text().replace('"use strict";', '"use strict"; ')
    (tmp_path / "page.html").write_text(changed, encoding="utf-8")
    with opened(browser, tmp_path / "page.html") as shown:
        assert shown.locator("th button").count() == 0


def test_the_page_asks_for_nothing_else(digits: Report) -> None:
    document = digits.file.read_text()
    found = Tags(document)
    sources = [a[name] for _, a in found.tags for name in ("src", "srcset", "action", "data") if name in a]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert not any(":" in a["href"] or a["href"].startswith("/") for _, a in found.tags if "href" in a)
    assert "url(" not in document
    assert "@import" not in document
    assert {tag for tag, _ in found.tags}.isdisjoint({"iframe", "object", "embed", "link", "form", "base"})
    assert found.tags[0] == ("html", {"lang": "en"})
    svgs = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", document)
    assert len(svgs) >= 5
    for svg in svgs:
        references = re.findall(r'(?:href|src)="([^"]*)"', base64.b64decode(svg).decode())
        assert all(reference.startswith(("#", "data:image/png")) for reference in references)


def test_nothing_to_show_is_still_a_page(browser: Browser, tmp_path: Path) -> None:
    nothing = made_up.results(grids.digits(), made=lambda run, attack: False, seconds=lambda run: 0)
    seen = look(browser, export.write(nothing, tmp_path / "report", command=COMMAND), 400)
    assert seen.problems == []
    assert "0 of 110 evaluations" in seen.text
