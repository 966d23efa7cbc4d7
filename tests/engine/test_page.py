"""The page: what it holds, and that nothing on it can run or fetch."""

import html
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from voxtune.engine.page import (
    Section,
    bullets,
    code,
    details,
    figure,
    is_page,
    page,
    pairs,
    paragraph,
    subheading,
    table,
    write_page,
)
from voxtune.models.errors import InputError

ODD = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "{policy} & {content} </style>",
)
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="80" height="40">'
    "<script>document.title = 'ran'</script><rect width='80' height='40' fill='#f60'/></svg>"
)


class Tags(HTMLParser):
    """Elements of a page, each closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def text(tmp_path: Path) -> str:
    """A page of everything, with odd names everywhere."""
    script, image, braces = ODD
    picture = tmp_path / "picture.svg"
    picture.write_text(SVG)
    parts = [
        paragraph(script),
        subheading(image),
        code(braces),
        bullets(ODD),
        table(image, ODD, [ODD, ("a", "1", "2")], words=(0, 1)),
        pairs({script: image}, braces),
        details(script, paragraph(image)),
        figure(picture, image, script),
    ]
    return page(script, ODD, [Section(image, parts), Section("Empty", []), Section(image, parts)])


def test_names_are_text_and_elements_are_closed(text: str) -> None:
    names = {tag for tag, _ in Tags(text).found}
    assert "script" not in names
    assert {"table", "details", "figure", "nav", "main"} <= names
    for odd in ODD:
        assert odd not in text
        assert text.count(html.escape(odd)) >= 4
    assert all("onerror" not in attributes for _, attributes in Tags(text).found)


def test_it_can_be_read_without_eyes(text: str) -> None:
    found = Tags(text).found
    assert ("html", {"lang": "en"}) in found
    assert all(attributes.get("alt") for tag, attributes in found if tag == "img")
    assert {attributes.get("scope") for tag, attributes in found if tag == "th"} == {"row", "col"}
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    links = [attributes["href"] for tag, attributes in found if tag == "a"]
    assert len(set(ids)) == len(ids) == 2  # a section without parts is left out
    assert links == [f"#{each}" for each in ids]


def test_numbers_stand_at_the_right() -> None:
    shown = table("caption", ("a", "b"), [("x", "1")])
    assert '<th scope="col">a</th><th scope="col" class="number">b</th>' in shown
    assert '<th scope="row">x</th><td class="number">1</td>' in shown


def test_nothing_is_fetched(text: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert re.fullmatch(
        r"default-src 'none'; img-src data:; style-src 'sha256-[\w+/=]+'; base-uri 'none'; "
        "form-action 'none'",
        html.unescape(policy[1]),
    )
    for _, attributes in Tags(text).found:
        assert attributes.get("src", "data:").startswith("data:")  # type: ignore[union-attr]
        assert attributes.get("href", "#").startswith("#")  # type: ignore[union-attr]
    assert "style=" not in text


def test_a_browser_shows_it(text: str, tmp_path: Path, chromium: Callable[..., str]) -> None:
    """It says nothing of its policy, applies the style, and the picture's script did not run."""
    path = tmp_path / "page.html"
    write_page(path, text)
    dom = chromium(path, "--dump-dom")
    assert f"<title>{html.escape(ODD[0], quote=False)}</title>" in dom
    assert "<script" not in dom.split("</head>")[1]
    path.write_text(text.replace("</style>", "p { color: red; }</style>"))
    with pytest.raises(AssertionError, match="Content Security Policy"):
        chromium(path, "--dump-dom")


def test_pages_of_ours(text: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert not is_page(path)
    path.write_text("<html>")
    assert not is_page(path)
    write_page(path, text)
    assert is_page(path)
    with pytest.raises(InputError, match="cannot be written"):
        write_page(tmp_path / "no" / "page.html", text)


def test_names_that_no_file_takes(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", page("a\udcff", [], []))
    assert "a?" in (tmp_path / "page.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("picture.gif", "give an"), ("no.png", "No such file"), ("huge.png", "too large")],
)
def test_pictures_that_cannot_be_shown(tmp_path: Path, name: str, sentence: str) -> None:
    with (tmp_path / "huge.png").open("wb") as stream:
        stream.truncate(2**26 + 1)
    with pytest.raises(InputError, match=sentence):
        figure(tmp_path / name, "alt", "caption")
