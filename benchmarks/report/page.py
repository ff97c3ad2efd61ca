"""Tables and figures -> one HTML page that needs nothing else: no script, no file beside it, no network."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.report.drawing import Picture
from benchmarks.report.markup import Table

# A browser keeps to this: nothing is fetched and nothing is run, whatever a record or a message may hold.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

# The title of a table is the heading above it as well: its caption is left to screen readers. Figures are drawn on
# white, and are scrolled rather than shrunk where the screen is too narrow to read them.
CSS = """
:root { color-scheme: light dark; --text: #1b1b1b; --back: #ffffff; --faint: #595959; --line: #c8c8c8;
  --band: #f3f4f6; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --back: #16181b; --faint: #a8adb3; --line: #43484e; --band: #22262b; --link: #7db8f2; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--back); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 2.5rem 0 0.5rem; padding-top: 0.75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.1rem; line-height: 1.3; margin: 1.75rem 0 0.5rem; }
p, figcaption, li, nav { max-width: 46rem; }
a { color: var(--link); }
nav ul { margin: 0.25rem 0; padding-left: 1.25rem; }
pre { white-space: pre-wrap; background: var(--band); border: 1px solid var(--line); border-radius: 4px;
  padding: 0.6rem 0.8rem; margin: 0.5rem 0; }
pre, code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 0.9375rem; }
.scroll { overflow-x: auto; max-width: 100%; position: relative; }
.scroll:focus-visible, a:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.scroll p { position: sticky; left: 0; margin: 0.5rem 0; color: var(--faint); font-size: 0.9375rem; }
table { border-collapse: collapse; width: max-content; font-size: 0.9375rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 1.1rem 0.3rem 0; max-width: min(24rem, 60vw); }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--line); }
tbody { border-bottom: 1px solid var(--line); }
figure { margin: 0.5rem 0; }
figure img { display: block; background: #ffffff; border-radius: 4px; height: auto; max-width: 100%; }
@media (max-width: 50rem) {
  figure img { max-width: none; }
  figure .scroll::before { content: "Scroll sideways for all of it."; position: sticky; left: 0; color: var(--faint);
    font-size: 0.9375rem; }
}
figcaption { margin-top: 0.5rem; color: var(--faint); font-size: 0.9375rem; }
details { max-width: 46rem; margin: 0.25rem 0; color: var(--faint); font-size: 0.9375rem; }
"""


def page(
    title: str,
    *,
    command: str,
    tables: Mapping[str, Sequence[Table]],
    pictures: Sequence[Picture],
    notes: Sequence[str] = (),
) -> str:
    """
    A whole HTML document.

    :param title: Of the page.
    :param command: What makes the results that it shows.
    :param tables: Lists of tables, each under its heading.
    :param pictures: The figures, in order.
    :param notes: Paragraphs to be read first, such as what is missing; text, not HTML.
    """
    sections = [(heading, [(t.title, _table(t)) for t in several]) for heading, several in tables.items() if several]
    if pictures:
        sections.append(("Figures", [(picture.title, _figure(picture)) for picture in pictures]))
    contents, body = [], []
    for i, (heading, parts) in enumerate(sections, 1):
        links = "".join(f'<li><a href="#s{i}-{j}">{escape(name)}</a></li>' for j, (name, _) in enumerate(parts, 1))
        contents.append(f'<li><a href="#s{i}">{escape(heading)}</a><ul>{links}</ul></li>')
        body.append(f'<section aria-labelledby="s{i}">\n<h2 id="s{i}">{escape(heading)}</h2>')
        body += [f'<h3 id="s{i}-{j}">{escape(name)}</h3>\n{html}' for j, (name, html) in enumerate(parts, 1)]
        body.append("</section>")
    paragraphs = "\n".join(f"<p>{escape(note)}</p>" for note in notes)
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
<header>
<h1>{escape(title)}</h1>
{paragraphs}
<p>Made by:</p>
<pre><code>{escape(command)}</code></pre>
</header>
<nav aria-label="Contents">
<ul>{"".join(contents)}</ul>
</nav>
<main>
{chr(10).join(body)}
</main>
</body>
</html>
"""


def _table(table: Table) -> str:
    return _scrolled(table.title, table.html())


def _figure(picture: Picture) -> str:
    svg, png = picture.svg, picture.png
    # Pixels gain nothing from an SVG around them.
    kind, data = ("png", png) if "strip" in picture.name and len(png) < len(svg) else ("svg+xml", svg)
    width = round(picture.figure.get_figwidth() * 96)
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    image = f'<img src="{source}" width="{width}" alt="{escape(picture.alt)}">'
    return (
        f"<figure>\n{_scrolled(picture.title, image)}\n<figcaption>{escape(picture.caption)}</figcaption>\n</figure>\n"
        f"<details><summary>The figure in words</summary>{escape(picture.alt)}</details>"
    )


def _scrolled(label: str, html: str) -> str:
    """Content that may be wider than the screen, to be scrolled by touch, mouse or, once focused, arrow keys."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">\n{html}\n</div>'
