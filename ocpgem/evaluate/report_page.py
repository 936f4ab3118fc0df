"""The HTML of a report: one file without scripts or anything to fetch, for light and dark screens."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

_STYLE = """
:root { color-scheme: light dark; --page: #f4f6f8; --card: #ffffff; --text: #1f2933; --quiet: #616e7c;
  --line: #e4e7eb; --accent: #2563eb; }
@media (prefers-color-scheme: dark) { :root { --page: #12161b; --card: #1b2128; --text: #d9dee4;
  --quiet: #8b98a5; --line: #323b45; --accent: #60a5fa; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2.2rem 1.2rem 3rem; }
h1 { font-size: 1.7rem; margin: 0; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 0.9rem; }
h3 { font-size: 0.95rem; margin: 1.2rem 0 0.4rem; color: var(--quiet); font-weight: 600; }
h3:first-of-type { margin-top: 0; }
.subtitle { color: var(--quiet); margin: 0.2rem 0 1.4rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 0.8rem;
  margin-bottom: 1rem; }
.tile, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 0.8rem 1rem; }
.tile b { display: block; font-size: 1.35rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { color: var(--quiet); font-size: 0.82rem; }
section { padding: 1.1rem 1.3rem 1.3rem; margin-bottom: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.32rem 1.1rem 0.32rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; }
th.left, td.left { text-align: left; }
tr:last-child td { border-bottom: none; }
td code { font-size: 0.86rem; }
.unit { color: var(--quiet); }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
p.note { color: var(--quiet); font-size: 0.86rem; margin: 0.8rem 0 0; }
details summary { cursor: pointer; font-weight: 600; }
pre { background: var(--page); border-radius: 8px; padding: 0.9rem 1rem; overflow-x: auto;
  font-size: 0.82rem; margin-bottom: 0; }
footer { color: var(--quiet); font-size: 0.82rem; text-align: center; margin-top: 1.6rem; }
"""


@dataclass
class Page:
    """A report under construction; every text is escaped here."""

    title: str
    subtitle: str
    _tiles: list[str] = field(default_factory=list)
    _sections: list[str] = field(default_factory=list)

    def tile(self, value: str, label: str) -> None:
        """A number worth a glance."""
        self._tiles.append(f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>')

    def section(self, title: str, *parts: str, note: str = "") -> None:
        """A card with a heading; `parts` are made by `table`, `picture` and `listing`."""
        tail = f'<p class="note">{escape(note)}</p>' if note else ""
        self._sections.append(f"<section><h2>{escape(title)}</h2>{''.join(parts)}{tail}</section>")

    def folded(self, title: str, *parts: str) -> None:
        """A card that opens on a click."""
        summary = f"<summary>{escape(title)}</summary>"
        self._sections.append(f"<section><details>{summary}{''.join(parts)}</details></section>")

    def html(self, footer: str) -> str:
        """The whole page."""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head><body><main>"
            f'<h1>{escape(self.title)}</h1><p class="subtitle">{escape(self.subtitle)}</p>'
            f'<div class="tiles">{"".join(self._tiles)}</div>'
            f"{''.join(self._sections)}<footer>{escape(footer)}</footer></main></body></html>\n"
        )


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], heading: str = "", left: Sequence[int] = (0,)
) -> str:
    """A table whose columns `left` are aligned to the left, the others to the right."""

    def cells(tag: str, row: Sequence[str]) -> str:
        sides = ["left" if number in left else "right" for number in range(len(row))]
        return "".join(
            f'<{tag} class="{side}">{escape(text)}</{tag}>' for side, text in zip(sides, row, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    title = f"<h3>{escape(heading)}</h3>" if heading else ""
    return f'{title}<div class="scroll"><table><tr>{cells("th", header)}</tr>{body}</table></div>'


def picture(light: bytes, dark: bytes, description: str) -> str:
    """A PNG for light screens and one for dark ones, inside the page."""
    return (
        f'<picture><source srcset="{_data_url(dark)}" media="(prefers-color-scheme: dark)">'
        f'<img src="{_data_url(light)}" alt="{escape(description, quote=True)}"></picture>'
    )


def listing(text: str) -> str:
    """Text as it is in its file."""
    return f"<pre>{escape(text)}</pre>"


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
