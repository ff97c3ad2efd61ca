"""Parser of HTML documents for tests: tags, their attributes and text."""

from html.parser import HTMLParser

VOID = {"meta", "img", "input", "link"}


class Reader(HTMLParser):
    """The tags of a document with their attributes and text; raises AssertionError if tags are not closed in order."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[int] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(document)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.append("")
        if tag not in VOID:
            self.open.append(len(self.tags) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.tags[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]] += data

    def of(self, *tags: str) -> list[str]:
        """Return the texts of the tags with these names."""
        return [text for (tag, _), text in zip(self.tags, self.texts, strict=True) if tag in tags]
