"""Tables and figures -> one HTML page that needs nothing else: no file beside it, no network."""

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
# A browser keeps to this: nothing is fetched and only SCRIPT is run, whatever a record or a message may hold.
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
    """Beside the page, with the numbers of its tables."""
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
    A whole HTML document. All texts are text, not HTML.

    :param title: Of the page.
    :param answers: What the results say, to be read first.
    :param first: The tables and figures to be seen with it.
    :param sections: The others.
    :param command: What makes the results that it shows.
    :param facts: When, with what and on what they were made.
    :param files: All files beside the page.
    :param notes: Paragraphs to be read before the numbers, such as what is missing.
    """
    shown = [section for section in sections if section.parts]
    names = ["Result", *(section.title for section in shown), "How it was made"]
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
    A page that lists others.

    :param entries: Of each its "grid", "what", "made", "verdict", and "page", its address from here.
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
    """An HTML document under the policy; the body is HTML."""
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
    # The anchor is within what is folded: a link to it unfolds it.
    body = [f'<div class="part" id="{name}">', *(_part(part, section.title) for part in section.parts), more]
    body += [_files("Numbers of these tables", section.files)] if section.files else []
    inner = "\n".join([*body, "</div>"])
    head = f"<h2>{escape(section.title)}</h2>"
    folded = f"<details>\n<summary>{head}</summary>\n{inner}\n</details>" if section.folded else f"{head}\n{inner}"
    return f'<section aria-label="{escape(section.title)}">\n{folded}\n</section>'


def _part(part: Table | Picture, above: str = "") -> str:
    """A table or a figure under its title, if that is not the heading above it."""
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
    """Content that may be wider than the screen, to be scrolled by touch, mouse or, once focused, arrow keys."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">\n{html}\n</div>'
