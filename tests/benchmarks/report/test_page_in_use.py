"""Use of a page in a browser: first screen, navigation, sorting, filtering and downloads."""

import csv
import io
import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page
from testing.browser import SHOWN, Report, opened

from benchmarks.report.claims import claims, claims_table
from benchmarks.report.markup import Table


@pytest.fixture(scope="module")
def claimed(strong_report: Report) -> Table:
    return claims_table(claims(strong_report.results))


def table_of(shown: Page, title: str) -> Locator:
    return shown.locator("table", has=shown.locator("caption", has_text=title))


def rows_of(table: Locator) -> list[list[str]]:
    script = "t => [...t.tBodies].flatMap(b => [...b.rows]).map(r => [...r.cells].map(c => c.textContent))"
    return [[text.replace("\u00a0", " ") for text in row] for row in table.evaluate(script)]


def filled(table: Table) -> list[list[str]]:
    """Return the rows, with the first entry of a section in each of its rows."""
    return [[section[0][0], *row[1:]] for section in table.sections for row in section]


def downloaded(shown: Page, button: Locator) -> tuple[str, bytes]:
    with shown.expect_download() as download:
        button.click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_the_first_screen_shows_the_verdict_and_the_whole_headline_table(
    browser: Browser, strong_report: Report
) -> None:
    with opened(browser, strong_report.file) as shown:
        for seen in (shown.locator(".verdict"), shown.locator("table").first):
            box = seen.bounding_box()
            assert box["y"] >= 0
            assert box["y"] + box["height"] <= 900
            assert box["x"] + box["width"] <= 1400
        assert "worst case" in shown.locator("table").first.inner_text()
    with opened(browser, strong_report.file, 400) as shown:
        box = shown.locator(".verdict strong").bounding_box()
        assert box["y"] + box["height"] <= 900
        frame = shown.locator(".scroll").first
        assert frame.evaluate("e => e.scrollWidth <= e.clientWidth")


def test_no_table_or_figure_is_cut_off_on_a_screen(browser: Browser, strong_report: Report) -> None:
    with opened(browser, strong_report.file) as shown:
        shown.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        frames = shown.locator(".scroll")
        assert frames.count() >= 6
        for frame in frames.all():
            assert frame.evaluate("e => e.scrollWidth <= e.clientWidth"), frame.get_attribute("aria-label")
        worst = table_of(shown, "Strong attacks").locator("thead th").last
        assert worst.inner_text().startswith("worst")
        assert worst.bounding_box()["x"] + worst.bounding_box()["width"] <= 1400


def test_wide_content_can_be_scrolled_to_its_end(browser: Browser, digits_report: Report) -> None:
    with opened(browser, digits_report.file, 400) as shown:
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
    browser: Browser, strong_report: Report, scripts: bool
) -> None:
    with opened(browser, strong_report.file, java_script_enabled=scripts) as shown:
        link = shown.locator("nav a", has_text="Gradient masking")
        assert link.bounding_box()["width"] > 0
        table = table_of(shown, "Gradient masking")
        assert not table.evaluate(SHOWN)
        link.click()
        assert table.evaluate(SHOWN)
        assert 0 <= shown.locator("h2", has_text="Gradient masking").bounding_box()["y"] <= 200
    with opened(browser, strong_report.file, 400, java_script_enabled=scripts) as shown:
        link = shown.locator("nav a").first
        assert not link.evaluate(SHOWN)
        shown.locator("nav summary").focus()
        shown.keyboard.press("Enter")
        assert link.evaluate(SHOWN)


def test_without_a_script_all_content_is_shown_and_there_are_no_buttons(
    browser: Browser, strong_report: Report, claimed: Table
) -> None:
    with opened(browser, strong_report.file, java_script_enabled=False) as shown:
        assert shown.locator("button, input").count() == 0
        assert [row[-1] for row in rows_of(table_of(shown, claimed.title))] == [row[-1] for row in claimed.rows]
        shown.emulate_media(media="print")
        for table in shown.locator("table").all():
            assert table.evaluate(SHOWN)


def test_clicks_on_a_header_sort_ascending_then_descending_then_restore_the_order(
    browser: Browser, strong_report: Report, claimed: Table
) -> None:
    with opened(browser, strong_report.file) as shown:
        table = table_of(shown, "The paper's claims")
        head = table.locator("th", has_text="effect")
        before, sections = rows_of(table), table.locator("tbody").count()
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
        assert sorted(rows_of(table)) == sorted(filled(claimed)), "sorting loses and invents no row"
        head.locator("button").click()
        assert rows_of(table) == before
        assert table.locator("tbody").count() == sections > 1


def test_rows_are_filtered_by_typed_text_and_downloaded_as_shown(
    browser: Browser, strong_report: Report, claimed: Table
) -> None:
    with opened(browser, strong_report.file) as shown:
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
    browser: Browser, digits_report: Report, tmp_path: Path
) -> None:
    alone = tmp_path / "moved.html"
    alone.write_bytes(digits_report.file.read_bytes())
    with opened(browser, alone) as shown:
        figure = shown.locator("figure").first
        name, svg = downloaded(shown, figure.locator("a", has_text=".svg"))
        assert name == "figure_1-digits.svg"
        assert svg == (digits_report.file.parent / name).read_bytes()
        name, png = downloaded(shown, figure.locator("a", has_text=".png"))
        assert name == "figure_1-digits.png"
        with Image.open(io.BytesIO(png)) as ours, Image.open(digits_report.file.parent / name) as theirs:
            assert ours.width / ours.height == pytest.approx(theirs.width / theirs.height, rel=0.01)
            assert ours.width >= 1000
            assert len(ours.convert("RGB").getcolors(1 << 24)) > 10
