"""HTML tables of results for notebooks."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> str:
    """
    Return an HTML table with a title above it and notes below it; all text is escaped.

    The table sets no colour, so it follows the light or dark theme of the notebook. Columns of text are aligned left,
    columns that contain a number are aligned right.

    :param rows: Rows of cells, as many as there are names in the header.

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
    """Return True if no cell of a column starts with a number."""
    return not any(cell.lstrip(" -")[:1].isdigit() for cell in column)
