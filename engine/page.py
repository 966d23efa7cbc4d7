"""One HTML page of text, tables and figures, which needs nothing but itself and a browser.

Nothing on it runs, and nothing is fetched: its policy allows its own style and embedded images
alone. What is given as text is shown as text. No JAX here.
"""

import base64
import hashlib
import html
import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NewType

from voxtune.engine.volume import written_beside
from voxtune.models.errors import InputError

Html = NewType("Html", str)

_OURS = b'<meta name="generator" content="voxtune">'
_HEAD = 4096  # bytes of a page that say whose it is
_LARGEST_FIGURE = 2**26  # bytes
_KINDS = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True)
class Section:
    """A part of a page that its table of contents names.

    Attributes:
        heading: of the part.
        parts: below it.
    """

    heading: str
    parts: Sequence[Html]


def page(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """All of a page.

    Args:
        title: and first heading.
        lead: paragraphs before all sections.
        sections: those without parts are left out.
    """
    shown = [each for each in sections if each.parts]
    anchors = _anchors([each.heading for each in shown])
    pairs = list(zip(anchors, shown, strict=True))
    links = "\n".join(
        f'<li><a href="#{anchor}">{_text(each.heading)}</a></li>' for anchor, each in pairs
    )
    content = [
        f"<header>\n<h1>{_text(title)}</h1>",
        f'<div class="lead">\n{_lines(map(paragraph, lead))}\n</div>\n</header>',
        f'<nav aria-label="Contents">\n<ul>\n{links}\n</ul>\n</nav>',
        "<main>",
        *(_section(anchor, each) for anchor, each in pairs),
        "</main>",
    ]
    template = files("voxtune.engine").joinpath("page.html").read_text("utf-8")
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src {source_hash(template, 'style')}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    values = {"policy": policy, "title": _text(title), "content": "\n".join(content)}
    # In one pass, so that a name with such braces stays a name.
    return re.sub(r"\{(policy|title|content)\}", lambda found: values[found[1]], template)


def write_page(path: Path, text: str) -> None:
    """Writes a page. An existing file is replaced.

    Raises:
        InputError: it cannot be written.
    """
    with written_beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def is_page(path: Path) -> bool:
    """Whether a file is a page that was made here, and so may be made again."""
    try:
        with path.open("rb") as stream:
            return _OURS in stream.read(_HEAD)
    except OSError:
        return False


def source_hash(template: str, element: str) -> str:
    """What lets one element of a page, and no other, run or style (Content-Security-Policy)."""
    found = re.search(f"<{element}>(.*?)</{element}>", template, re.DOTALL)
    assert found
    digest = hashlib.sha256(found[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


# Parts of a page


def paragraph(text: str) -> Html:
    """A paragraph."""
    return Html(f"<p>{_text(text)}</p>")


def bullets(texts: Iterable[str]) -> Html:
    """Points, one below the other."""
    items = "\n".join(f"<li>{_text(each)}</li>" for each in texts)
    return Html(f"<ul>\n{items}\n</ul>")


def subheading(text: str) -> Html:
    """A heading within a section."""
    return Html(f"<h3>{_text(text)}</h3>")


def code(text: str) -> Html:
    """Lines as a person would type them, commands for example."""
    return Html(f"<pre><code>{_text(text)}</code></pre>")


def table(
    caption: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    words: Collection[int] = (0,),
) -> Html:
    """A table; it scrolls by itself where it is wider than the screen.

    Args:
        caption: what it shows.
        header: a name for each column.
        rows: a cell for each column; the first says what the row is of.
        words: columns of words; all others are of numbers, which stand at the right.
    """
    number = ["" if place in words else ' class="number"' for place in range(len(header))]
    named = zip(number, header, strict=True)
    head = "".join(f'<th scope="col"{kind}>{_text(each)}</th>' for kind, each in named)
    body = "\n".join(_row(number, row) for row in rows)
    return _wide(
        caption,
        f"<table>\n<caption>{_text(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>",
    )


def pairs(rows: Mapping[str, str], caption: str = "") -> Html:
    """Names and what they stand for, one below the other."""
    title = f"<caption>{_text(caption)}</caption>\n" if caption else ""
    body = "\n".join(
        f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>'
        for name, value in rows.items()
    )
    return _wide(caption, f'<table class="pairs">\n{title}<tbody>\n{body}\n</tbody>\n</table>')


def details(summary: str, *parts: Html) -> Html:
    """What is seen once its summary is clicked, and on paper."""
    return Html(f"<details>\n<summary>{_text(summary)}</summary>\n{_lines(parts)}\n</details>")


def figure(path: Path, alt: str, caption: str) -> Html:
    """A picture within the page. As an image, an SVG file can neither run nor fetch anything.

    Args:
        path: .svg or .png.
        alt: what it shows, for who does not see it.
        caption: below it.

    Raises:
        InputError: it cannot be read, or is far too large.
    """
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path} is no picture for a page; give an .svg or .png file.")
    try:
        if path.stat().st_size > _LARGEST_FIGURE:
            raise InputError(
                f"{path} is larger than {_LARGEST_FIGURE} bytes, too large for a page."
            )
        content = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    return Html(
        f'<figure>\n<img alt="{_text(alt)}" src="data:{kind};base64,{content}">\n'
        f"<figcaption>{_text(caption)}</figcaption>\n</figure>"
    )


def _section(anchor: str, section: Section) -> str:
    heading = f'<h2 id="{anchor}">{_text(section.heading)}</h2>'
    return f'<section aria-labelledby="{anchor}">\n{heading}\n{_lines(section.parts)}\n</section>'


def _row(number: Sequence[str], row: Sequence[str]) -> str:
    named = zip(number, row, strict=True)
    cells = [
        f'<th scope="row"{kind}>{_text(cell)}</th>'
        if place == 0
        else f"<td{kind}>{_text(cell)}</td>"
        for place, (kind, cell) in enumerate(named)
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _wide(caption: str, content: str) -> Html:
    # It can be scrolled by keys alone, for which it needs the focus and a name.
    label = f' role="region" aria-label="{_text(caption)}" tabindex="0"' if caption else ""
    return Html(f'<div class="wide"{label}>\n{content}\n</div>')


def _anchors(headings: Sequence[str]) -> list[str]:
    """Different from each other, of letters that need no quotes."""
    found: list[str] = []
    for heading in headings:
        plain = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        numbered = (f"{plain}-{number}" for number in itertools.count(2))
        free = (each for each in itertools.chain([plain], numbered) if each not in found)
        found.append(next(free))
    return found


def _lines(parts: Iterable[Html]) -> str:
    return "\n".join(parts)


def _text(text: str) -> str:
    # Lone surrogates, of file names in another encoding, could not be written.
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))
