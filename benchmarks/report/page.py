"""HTML page of a report: one self-contained file with tables and figures, which needs no other file and no network."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from benchmarks.report.drawing import Picture
from benchmarks.report.headline import Answer
from benchmarks.report.markup import Table

CSS, SCRIPT = (Path(__file__).with_name(f"page.{ending}").read_text(encoding="utf-8") for ending in ("css", "js"))
_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
# Content Security Policy: the browser fetches nothing and runs only SCRIPT, even if a record or a message contained
# markup that was not escaped.
POLICY = (
    f"default-src 'none'; script-src 'sha256-{_HASH}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)


@dataclass(frozen=True)
class Section:
    """Tables and figures of one subject."""

    title: str
    parts: Sequence[Table | Picture]
    files: Sequence[str] = ()
    """Names of the files next to the page that hold the numbers of its tables."""
    folded: bool = True


def page(
    title: str,
    *,
    answers: Sequence[Answer],
    first: Sequence[Table | Picture],
    sections: Sequence[Section],
    command: str,
    facts: Mapping[str, str],
    files: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """
    Return a whole HTML document. All arguments are plain text, which is escaped.

    :param title: The title of the page.
    :param answers: The verdicts, shown first.
    :param first: Tables and figures shown with the verdicts.
    :param sections: The other tables and figures.
    :param command: The command that computes the results.
    :param facts: Date, versions and machine of the results.
    :param files: Names of all files next to the page.
    :param notes: Paragraphs before the numbers, such as the number of missing evaluations.
    """
    shown = [section for section in sections if section.parts]
    names = ["Result", *(section.title for section in shown), "How this page was made"]
    links = "\n".join(f'<li><a href="#s{i}">{escape(name)}</a></li>' for i, name in enumerate(names))
    verdicts = [f'<p class="verdict"><strong>{escape(a.verdict)}.</strong> {escape(a.evidence)}</p>' for a in answers]
    body = [
        '<nav aria-label="Contents">\n<details>\n<summary>Contents</summary>',
        f"<ul>\n{links}\n</ul>\n</details>\n</nav>",
        f'<main>\n<section class="answer" id="s0">\n<h1>{escape(title)}</h1>',
        *verdicts,
        *(f"<p>{escape(note)}</p>" for note in notes),
        *map(_part, first),
        "</section>",
        *(_section(f"s{i}", section) for i, section in enumerate(shown, 1)),
        _section(f"s{len(names) - 1}", Section(names[-1], (), folded=False), _making(command, facts, files)),
        f"</main>\n<script>{SCRIPT}</script>",
    ]
    return document(title, "\n".join(body))


def index(entries: Sequence[Mapping[str, str]]) -> str:
    """
    Return a page that lists the reports of several grids.

    :param entries: For each report its "grid", "what", "made", "verdict", and "page", its relative address.
    """
    articles = "\n".join(
        f'<section aria-label="{escape(entry["grid"])}">\n'
        f'<h2><a href="{quote(entry["page"])}">{escape(entry["grid"])}</a></h2>\n<p>{escape(entry["verdict"])}</p>\n'
        f'<p class="note">{escape(". ".join(filter(None, (entry["what"], entry["made"]))))}</p>\n</section>'
        for entry in entries
    )
    title = "HR loss: all grids"
    return document(title, f'<main class="index">\n<h1>{title}</h1>\n{articles}\n</main>')


def document(title: str, body: str) -> str:
    """Return an HTML document with the Content Security Policy; its body is HTML and is not escaped."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _section(name: str, section: Section, more: str = "") -> str:
    # The anchor is inside the folded part: following a link to it unfolds the section.
    body = [f'<div class="part" id="{name}">', *(_part(part, section.title) for part in section.parts), more]
    body += [_files("These tables as files", section.files)] if section.files else []
    inner = "\n".join([*body, "</div>"])
    head = f"<h2>{escape(section.title)}</h2>"
    folded = f"<details>\n<summary>{head}</summary>\n{inner}\n</details>" if section.folded else f"{head}\n{inner}"
    return f'<section aria-label="{escape(section.title)}">\n{folded}\n</section>'


def _part(part: Table | Picture, above: str = "") -> str:
    """Return a table or a figure as HTML, under its title unless the heading above it is the same."""
    title = "" if part.title == above else f"<h3>{escape(part.title)}</h3>\n"
    return title + (_table(part) if isinstance(part, Table) else _figure(part))


def _table(table: Table) -> str:
    notes = "\n".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return f"{_scrolled(table.title, table.html())}\n{notes}"


def _figure(picture: Picture) -> str:
    width = round(picture.figure.get_figwidth() * 96)
    source = f"data:image/svg+xml;base64,{base64.b64encode(picture.svg).decode()}"
    image = f'<img src="{source}" width="{width}" alt="{escape(picture.alt)}">'
    return (
        f"<figure>\n{_scrolled(picture.title, image)}\n<figcaption>{escape(picture.caption)}</figcaption>\n"
        f"{_files('Download', [f'{picture.name}.png', f'{picture.name}.svg'])}\n</figure>\n"
        f'<details class="words"><summary>The figure as text</summary>{escape(picture.alt)}</details>'
    )


def _files(label: str, names: Sequence[str]) -> str:
    links = ", ".join(f'<a href="{quote(name)}" download="{escape(name)}">{escape(name)}</a>' for name in names)
    return f'<p class="files">{escape(label)}: {links}</p>'


def _making(command: str, facts: Mapping[str, str], files: Sequence[str]) -> str:
    described = {"Command": f"<code>{escape(command)}</code>"} | {name: escape(text) for name, text in facts.items()}
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{text}</dd>" for name, text in described.items())
    return f"<dl>{rows}</dl>" + ("\n" + _files("All files", files) if files else "")


def _scrolled(label: str, html: str) -> str:
    """Return content that may be wider than the screen in a region that scrolls by touch, mouse and arrow keys."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">\n{html}\n</div>'
