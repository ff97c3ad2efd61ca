"""Table of text in every form in which it is shown: Markdown, LaTeX, HTML and a terminal."""

import re
from dataclasses import dataclass
from html import escape

from rich import box
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

# Characters with a meaning in LaTeX, or that its default font encoding prints as another character.
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
    # At the beginning of a row, LaTeX would read these as options of the line break above it.
    "[": "{[}",
    "*": "{*}",
}


@dataclass(frozen=True)
class Table:
    """
    Table of text: a title, a header, rows, and notes.

    A row whose first entry is not empty begins a section.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    @property
    def sections(self) -> list[list[tuple[str, ...]]]:
        """The rows of each section."""
        sections: list[list[tuple[str, ...]]] = []
        for row in self.rows:
            if row[0] or not sections:
                sections.append([])
            sections[-1].append(row)
        return sections

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        # An unescaped bar would end the entry.
        body = "\n".join("| " + " | ".join(entry.replace("|", r"\|") for entry in line) + " |" for line in lines)
        return f"**{self.title}**\n\n{body}\n\n" + "\n\n".join(self.notes) + "\n"

    def latex(self) -> str:
        """Return the table in LaTeX, with its notes, for documents that use the package booktabs."""
        lines = [[" & ".join(map(_latex, row)) + r" \\" for row in section] for section in self.sections]
        # A rule between sections of several rows; single rows need none.
        between = "\n\\midrule\n" if any(len(section) > 1 for section in lines) else "\n"
        parts = [
            "\\begin{table}\n\\centering",
            f"\\caption{{{_latex(self.title)}}}",
            f"\\begin{{tabular}}{{{'l' * len(self.header)}}}\n\\toprule",
            " & ".join(map(_latex, self.header)) + " \\\\\n\\midrule",
            *([between.join("\n".join(section) for section in lines)] if lines else []),
            "\\bottomrule\n\\end{tabular}",
            *(f"\\par\\smallskip\n{_latex(note)}" for note in self.notes),
            "\\end{table}",
        ]
        return "\n".join(parts) + "\n"

    def html(self) -> str:
        """Return the table in HTML, without its notes."""
        header = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.header)
        lines = [f"<table>\n<caption>{escape(self.title)}</caption>", f"<thead>\n<tr>{header}</tr>\n</thead>"]
        for section in self.sections:
            lines.append("<tbody>")
            scope = 'scope="row"' if len(section) == 1 else f'scope="rowgroup" rowspan="{len(section)}"'
            first = f"<th {scope}>{escape(section[0][0])}</th>"
            for row in section:
                # In a narrow column an interval may be broken before its ± only.
                entries = (escape(entry).replace("± ", "±\N{NO-BREAK SPACE}") for entry in row[1:])
                lines.append(f"<tr>{first}" + "".join(f"<td>{entry}</td>" for entry in entries) + "</tr>")
                first = ""  # it spans the section
            lines.append("</tbody>")
        return "\n".join([*lines, "</table>"]) + "\n"

    def rich(self) -> Group:
        """Return the table for a terminal."""
        table = RichTable(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        for name in self.header:
            table.add_column(Text(name))
        ruled = any(len(section) > 1 for section in self.sections)
        for section in self.sections:
            for i, row in enumerate(section, start=1):
                table.add_row(*map(Text, row), end_section=ruled and i == len(section))
        # Text, not str: rich would read the brackets in a str as markup.
        return Group(Text(self.title, style="italic"), table, Text("\n".join(self.notes), style="dim italic"))


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped)
