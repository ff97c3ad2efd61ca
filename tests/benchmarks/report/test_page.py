"""The page of a real run, opened in a real browser at the width of a telephone and of a screen."""

import base64
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
from matplotlib.figure import Figure
from playwright.sync_api import Browser
from testing import made_up
from testing.browser import Report, look, opened
from testing.reading import Reader

from benchmarks import grids
from benchmarks.report import export
from benchmarks.report.drawing import Picture
from benchmarks.report.headline import Answer
from benchmarks.report.markup import Table
from benchmarks.report.page import Section, index, page

COMMAND = "python -m benchmarks run --grid digits"
HOSTILE = "</title></p><script>document.title = 'run'</script><img src=x onerror=\"throw 1\"> & \"quoted\" 'text'"


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1400, "dark")])
def test_the_page_is_whole_and_readable(browser: Browser, digits_report: Report, width: int, scheme: str) -> None:
    shots = os.environ.get("PAGE_SHOTS")  # a folder, to look at the page oneself
    seen = look(
        browser, digits_report.file, width, scheme, Path(shots) / f"page-{width}-{scheme}.png" if shots else None
    )
    assert seen.problems == []
    made = export.Report(digits_report.results)
    titles = [table.title for name, several in made.tables.items() for table in several if name != "claims"]
    assert len(made.pictures) == 8
    titles += [picture.title for picture in made.pictures]
    assert sorted(seen.headings) == sorted([*titles, "Test accuracy on digits, from no attack to the worst case"])
    assert sorted(seen.captions) == sorted(picture.caption for picture in made.pictures)
    assert all(text in seen.text for text in (COMMAND, "CE trained, CE attack", "on a day"))


def test_every_link_points_to_a_file_or_a_part_of_the_page(browser: Browser, digits_report: Report) -> None:
    with opened(browser, digits_report.file, java_script_enabled=False) as shown:
        links = [link.get_attribute("href") for link in shown.locator("a").all()]
        for part in [link[1:] for link in links if link.startswith("#")]:
            assert shown.locator(f'[id="{part}"]').count() == 1
    files = {link for link in links if not link.startswith("#")}
    beside = {path.name for path in digits_report.file.parent.iterdir()} - {"index.html", "summary.json"}
    assert files == beside


def test_the_list_of_grids_has_each_with_its_verdict(browser: Browser, digits_report: Report, tmp_path: Path) -> None:
    for name in ("one", "two & <b>"):
        shutil.copytree(digits_report.file.parent, tmp_path / name)
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


def test_markup_in_texts_is_escaped(browser: Browser, tmp_path: Path) -> None:
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
    found = Reader(document)
    assert [tag for tag, _ in found.tags].count("script") == 1
    (image,) = [attributes for tag, attributes in found.tags if tag == "img"]
    assert image["alt"] == HOSTILE
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert sum(text.count(HOSTILE) for text in found.texts) >= 10
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


def test_the_content_security_policy_blocks_injected_scripts_and_images(
    browser: Browser, digits_report: Report, tmp_path: Path
) -> None:
    smuggled = (
        "<script>document.title = 'run'</script><img src='https://example.invalid/x.png' alt='x'>"
        "<script src='https://example.invalid/x.js'></script>"
    )
    file = tmp_path / "page.html"
    file.write_text(digits_report.file.read_text().replace("</main>", f"{smuggled}</main>"), encoding="utf-8")
    seen = look(browser, file, 1400)
    assert seen.title == "HR loss: grid digits"
    complaints = [problem for problem in seen.problems if "Content Security Policy" in problem]
    assert len(complaints) == 3
    with opened(browser, file) as shown:
        assert shown.locator("th button").count() > 10, "the page's own script is run"


def test_a_modified_script_is_not_run(browser: Browser, digits_report: Report, tmp_path: Path) -> None:
    changed = digits_report.file.read_text().replace('"use strict";', '"use strict"; ')
    (tmp_path / "page.html").write_text(changed, encoding="utf-8")
    with opened(browser, tmp_path / "page.html") as shown:
        assert shown.locator("th button").count() == 0


def test_the_page_loads_no_other_resource(digits_report: Report) -> None:
    document = digits_report.file.read_text()
    found = Reader(document)
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


def test_a_report_without_records_has_a_page(browser: Browser, tmp_path: Path) -> None:
    nothing = made_up.results(grids.digits(), made=lambda run, attack: False, seconds=lambda run: 0)
    seen = look(browser, export.write(nothing, tmp_path / "report", command=COMMAND), 400)
    assert seen.problems == []
    assert "0 of 140 evaluations" in seen.text
