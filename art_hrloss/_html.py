"""Results as HTML for notebooks."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> str:
    """
    Return a table with a title above and notes below, every text escaped.

    It sets no colour, so that it has those of the notebook's theme, light or dark. The first column is a name, aligned
    left; so are columns that are empty or text in every row. Numbers are aligned right.

    >>> html_table("Two", ("what", "value"), [("a < b", "1")])[:60]
    '<div><p><strong>Two</strong></p><table><thead><tr><th scope='
    """
    lines = [tuple(row) for row in rows]
    styles = [f' style="text-align:{"left" if _is_text(column) else "right"}"' for column in zip(*lines, strict=True)]
    styles = styles or [""] * len(header)
    head = "".join(f'<th scope="col"{s}>{escape(name)}</th>' for name, s in zip(header, styles, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{s}>{escape(cell)}</td>" for cell, s in zip(line, styles, strict=True)) + "</tr>"
        for line in lines
    )
    below = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        f"<div><p><strong>{escape(title)}</strong></p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        + (f"<ul>{below}</ul>" if below else "")
        + "</div>"
    )


def _is_text(column: Iterable[str]) -> bool:
    """Return whether no cell of a column begins as a number does."""
    return not any(cell.lstrip(" -")[:1].isdigit() for cell in column)
