"""Forms of a table: all have the same text, and none interprets the text as markup."""

import io
import re

import pytest
from rich.console import Console
from testing.reading import Reader

from benchmarks.report.markup import Table

TABLE = Table(
    "A title of 100% & <b>more</b>",
    ("eps", "a|b_c", "d"),
    (("0", "first", "0.5 ± 0.1†"), ("", "x < y & z", "-0.25"), ("1", "[red]#1", "")),
    ("A note: 50% of {x}, ~ ^ \\ $ 1e-7, C[i, j].", "‡ Another."),
)
EMPTY = Table("None", ("a", "b"), (), ())


def test_a_row_with_a_first_entry_begins_a_section() -> None:
    assert [len(section) for section in TABLE.sections] == [2, 1]
    headless = Table("", ("a",), (("",), ("x",)), ())
    assert headless.sections == [[("",)], [("x",)]]


def test_markdown_has_title_rows_and_notes() -> None:
    lines = TABLE.markdown().splitlines()
    assert lines[0] == "**A title of 100% & <b>more</b>**"
    assert lines[2:7] == [
        r"| eps | a\|b_c | d |",
        "| --- | --- | --- |",
        "| 0 | first | 0.5 ± 0.1† |",
        "|  | x < y & z | -0.25 |",
        "| 1 | [red]#1 |  |",
    ]
    assert lines[-3:] == [TABLE.notes[0], "", TABLE.notes[1]]


def test_latex_escapes_special_characters() -> None:
    lines = TABLE.latex().splitlines()
    assert r"\caption{A title of 100\% \& \textless{}b\textgreater{}more\textless{}/b\textgreater{}}" in lines
    assert r"eps & a\textbar{}b\_c & d \\" in lines
    assert r"0 & first & 0.5 $\pm$ 0.1\textdagger{} \\" in lines
    assert r" & x \textless{} y \& z & $-$0.25 \\" in lines
    assert r"1 & {[}red]\#1 &  \\" in lines
    note = r"A note: 50\% of \{x\}, \textasciitilde{} \textasciicircum{} \textbackslash{} \$ 1e-7, C{[}i, j]."
    assert note in lines
    assert r"\textdaggerdbl{} Another." in lines


@pytest.mark.parametrize("table", [TABLE, EMPTY], ids=["full", "empty"])
def test_latex_is_balanced_and_every_row_has_all_columns(table: Table) -> None:
    text = table.latex()
    plain = re.sub(r"\\[{}]", "", text)
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert re.findall(r"\\begin{(\w+)}", text) == list(reversed(re.findall(r"\\end{(\w+)}", text)))
    (columns,) = re.findall(r"\\begin{tabular}{(l+)}", text)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + len(table.rows)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(columns) - 1} == {len(table.header) - 1}
    assert text.isascii(), "no character that a plain LaTeX may not have"
    assert [text.count(rule) for rule in (r"\toprule", r"\bottomrule")] == [1, 1]


def test_latex_separates_sections_by_rules_only_if_one_has_several_rows() -> None:
    assert TABLE.latex().count(r"\midrule") == 2
    single = Table("", ("a",), (("1",), ("2",), ("3",)), ())
    assert single.latex().count(r"\midrule") == 1


def test_html_has_the_text_and_interprets_none_of_it_as_a_tag() -> None:
    reader = Reader(TABLE.html())
    assert reader.of("caption") == [TABLE.title]
    assert reader.of("th") == [*TABLE.header, "0", "1"]
    # A line break is possible before ±, and not after it.
    assert reader.of("td") == ["first", "0.5 ±\N{NO-BREAK SPACE}0.1†", "x < y & z", "-0.25", "[red]#1", ""]
    assert len(reader.of("tr")) == 4
    assert {tag for tag, _ in reader.tags} <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    heads = [attributes for tag, attributes in reader.tags if tag == "th"]
    assert heads == [*[{"scope": "col"}] * 3, {"scope": "rowgroup", "rowspan": "2"}, {"scope": "row"}]


@pytest.mark.parametrize("markup", [True, False])
def test_a_terminal_shows_brackets_as_they_are(markup: bool) -> None:
    output = io.StringIO()
    Console(file=output, width=80, markup=markup).print(TABLE.rich())
    shown = output.getvalue()
    texts = [TABLE.title, *TABLE.header, *(entry for row in TABLE.rows for entry in row), *TABLE.notes]
    assert all(text in shown for text in texts)


def test_a_table_without_rows_has_every_form() -> None:
    assert EMPTY.markdown().splitlines()[2:4] == ["| a | b |", "| --- | --- |"]
    assert "<tbody>" not in EMPTY.html()
    Console(file=io.StringIO()).print(EMPTY.rich())
