"""Helpers that open pages in a real browser and list their problems."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Page

from benchmarks.report.results import Results

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The last five options prevent network requests of the browser itself.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Timeout in milliseconds for opening a page, long enough on a busy machine.
PATIENCE = 120_000

# Script that returns the problems of an open page as a list of sentences. It checks the elements that contain text
# directly. Within .scroll, text may be wider than the screen.
INSPECT = """
() => {
  const found = [], wide = window.innerWidth, style = getComputedStyle;
  const rgb = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = color => rgb(color).slice(0, 3)
    .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const background = element => {
    for (let e = element; e; e = e.parentElement)
      if (rgb(style(e).backgroundColor)[3] !== 0) return style(e).backgroundColor;
    return "rgb(255, 255, 255)";
  };
  for (const details of document.querySelectorAll("details")) details.open = true;
  if (document.documentElement.scrollWidth > wide)
    found.push(`the body scrolls sideways: ${document.documentElement.scrollWidth} > ${wide}`);
  if (parseFloat(style(document.body).fontSize) < 14) found.push("the body's font is under 14 px");
  for (const image of document.images) {
    if (!image.complete || image.naturalWidth === 0) found.push(`image not shown: ${image.alt}`);
    if (!image.alt.trim()) found.push("image without alt");
  }
  for (const element of document.body.querySelectorAll("*")) {
    const text = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join("");
    if (!text || !element.checkVisibility()) continue;
    const box = element.getBoundingClientRect(), what = text.slice(0, 60);
    if (parseFloat(style(element).fontSize) < 14) found.push(`text under 14 px: ${what}`);
    if (!element.closest(".scroll") && (box.left < 0 || box.right > wide)) found.push(`text off the screen: ${what}`);
    const [low, high] = [luminance(style(element).color), luminance(background(element))].sort((a, b) => a - b);
    if ((high + 0.05) / (low + 0.05) < 4.5) found.push(`text too faint: ${what}`);
  }
  return found;
}
"""


# Script that returns whether an element is visible; the content of a closed <details> is not.
SHOWN = "e => e.checkVisibility({contentVisibilityAuto: true})"


@dataclass(frozen=True)
class Seen:
    """The visible content of a page with all <details> open, and its problems."""

    problems: list[str]
    title: str
    headings: list[str]
    captions: list[str]
    text: str


@dataclass(frozen=True)
class Report:
    """A report file and the results that it was generated from."""

    results: Results
    file: Path


def look(browser: Browser, file: Path, width: int, scheme: str = "light", shot: Path | None = None) -> Seen:
    """Open a file without network access, and return its content and problems."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE)
    problems: list[str] = []

    def hear(message: object) -> None:
        if message.type in ("error", "warning"):
            problems.append(f"console {message.type}: {message.text}")

    opened.on("console", hear)
    opened.on("pageerror", lambda error: problems.append(f"page error: {error}"))
    opened.on("requestfailed", lambda request: problems.append(f"request failed: {request.url[:80]}"))
    opened.on("request", lambda r: r.url.startswith(("data:", file.as_uri())) or problems.append(f"asks for {r.url}"))
    opened.goto(file.as_uri(), wait_until="load")
    problems += opened.evaluate(INSPECT)
    visible = [[e.inner_text() for e in opened.locator(tag).all() if e.is_visible()] for tag in ("h3", "figcaption")]
    seen = Seen(problems, opened.title(), *visible, opened.inner_text("body"))
    if shot is not None:
        opened.screenshot(path=shot, full_page=True)
    context.close()
    return seen


@contextmanager
def opened(browser: Browser, file: Path, width: int = 1400, **options: object) -> Iterator[Page]:
    """Open a file in a new page without network access, and close the page at the end of the context."""
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
    shown = context.new_page()
    shown.set_default_timeout(PATIENCE)
    shown.goto(file.as_uri())
    yield shown
    context.close()
