"""The page of throughput: what it says, that nothing of a history can run, and what it replaces."""

import html
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from voxtune.benchmarks.history import Entry
from voxtune.benchmarks.measurement import Work
from voxtune.benchmarks.throughput_page import check_place, write
from voxtune.engine.page import page, write_page
from voxtune.engine.plots import MAX_BYTES
from voxtune.models.errors import InputError

Make = Callable[..., Entry]
ODD = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def written(entry: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two revisions, with odd names everywhere."""
    path = tmp_path_factory.mktemp("page") / "throughput.html"
    old = {"revision": "old", "date": "2026-01-01"}
    new = {"flags": {"XLA_FLAGS": ODD}, "versions": {"jax": ODD}}
    write(
        [
            entry(seconds=(2.0,) * 3, **old),
            entry("PyTorch", seconds=(2.0,) * 3, **old),
            entry(seconds=(1.0, 1.0, 1.6), **new),
            entry("PyTorch", seconds=(2.5,) * 3, version=ODD, **new),
            entry(ODD, seconds=(), problem=f"out of {ODD}", **new),
            entry("Late", seconds=(), problem="after 9 s", values={"least_ratio": 5.39}, **new),
            entry(
                suite="data", case=ODD, work=Work(4), floors=(), values={"data_wait": 0.013}, **new
            ),
        ],
        path,
    )
    return path


def test_it_tells_all(written: Path) -> None:
    text = html.unescape(written.read_text("utf-8"))
    for told in (
        "Last measured on 2026-01-31 at revision 0123456789abcdef",
        "2.50 times (2.03 to 2.50, noisy)",  # a ratio with its quartiles
        "1.00 s (1.00 to 1.30, noisy)",
        "20.0 % (16.2 to 20.0, noisy)",  # of the peak
        "1.00 times (1.00 to 1.00)",  # of the old revision
        "data wait 1.3 %",
        "<td>products</td>",  # what binds a layer
        "block9",
        '<td>PyTorch</td><td class="number">2.50 times',
        f"out of {ODD}",
        "On a CPU all programs that only cut blocks keep memory that they freed",
        f"XLA_FLAGS={ODD}",
        "100 GFLOP/s",
        "10 GB/s",
        "on zeros of a padding count",
    ):
        assert told in text
    assert ODD not in written.read_text("utf-8")


def test_a_peer_that_was_stopped_has_a_bound_and_no_time(written: Path) -> None:
    text = html.unescape(written.read_text("utf-8"))
    number = '<td class="number">'
    (row,) = re.findall(r"<td>Late</td>(.*?)</tr>", text[: text.index(">Against the floor</h2>")])
    assert row.startswith(f"{number}over 5.3 times</td>{number}1.00 s")
    assert f"{number}stopped</td>" in row
    assert "Late: after 9 s" in text[text.index(">Without figures, or stopped</h2>") :]


def test_it_tells_of_each_suite_what_was_checked(written: Path) -> None:
    text = html.unescape(written.read_text("utf-8"))
    assert "In train, a peer is timed if it has voxtune's losses" in text
    assert "In predict" not in text  # nothing of it was measured
    assert "The loop with nibabel is not checked: it draws blocks anywhere" in text
    assert "computed the same" not in text


def test_a_table_for_a_readme_lies_beside_it(written: Path) -> None:
    text = written.with_suffix(".md").read_text("utf-8")
    assert "| train: net, 16³, batch 1, float32 | 1.00 s (1.00 to 1.30, noisy) |" in text
    assert ODD not in text


def test_columns_of_nothing_are_left_out(written: Path) -> None:
    text = written.read_text("utf-8")
    data = text[text.index(">Suite data</h2>") : text.index(">Without figures, or stopped</h2>")]
    header = re.findall(r'<th scope="col"[^>]*>([^<]*)<', data)
    assert header == ["Case", "Program", "Time", "First turn", "Per second", "Memory", "Also"]


def test_its_pictures_are_within_it_and_one_lies_beside_it(written: Path) -> None:
    text = written.read_text("utf-8")
    assert len(re.findall(r'<img alt="[^"]{20,}" src="data:image/svg\+xml;base64,', text)) == 3
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    picture = written.with_suffix(".png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < MAX_BYTES


def test_a_browser_shows_it(written: Path, chromium: Callable[..., str]) -> None:
    dom = chromium(written, "--dump-dom")
    assert "<script" not in dom
    assert ODD in html.unescape(dom)


def test_nothing_but_its_own_is_replaced(entry: Make, tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    found = [entry(suite="compile", floors=(), work=Work())]
    write(found, path)
    first = path.read_bytes()
    write([*found, entry(suite="convert", floors=(), work=Work())], path)
    assert path.read_bytes() != first
    for content in ("mine", page("Run a", [], [])):  # a run's page is voxtune's as well
        write_page(path, content)
        with pytest.raises(InputError, match=r"index\.html exists and is no page of a benchmark"):
            write(found, path)
        assert path.read_text() == content
    path.unlink()
    with pytest.raises(InputError, match=r"index\.png exists"):
        write(found, path)
    path.with_suffix(".png").unlink()
    write(found, path)
    path.with_suffix(".md").write_text("# Mine")
    with pytest.raises(InputError, match=r"index\.md exists"):
        write(found, path)
    assert path.with_suffix(".md").read_text() == "# Mine"


def test_wherever_it_is_killed_it_can_be_written_again(
    entry: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    rename, done = Path.replace, []

    def replace(path: Path, target: Path) -> Path:
        if target.parent == path.parent == folder and not target.name.startswith("."):
            if len(done) == count:
                raise Killed
            done.append(target)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    found = [entry(suite="compile", floors=(), work=Work())]
    for count in range(3):
        folder = tmp_path / str(count)
        folder.mkdir()
        done.clear()
        with pytest.raises(Killed):
            write(found, folder / "index.html")
        assert len(list(folder.iterdir())) == count
        check_place(folder / "index.html")


def test_places_that_take_no_page(tmp_path: Path) -> None:
    check_place(tmp_path / "page.html")
    with pytest.raises(InputError, match=r"must end in \.html"):
        check_place(tmp_path / "page.txt")
    with pytest.raises(InputError, match="there is no folder"):
        check_place(tmp_path / "none" / "page.html")
    (tmp_path / "page.html").mkdir()
    with pytest.raises(InputError, match="left alone"):
        check_place(tmp_path / "page.html")


def test_a_history_of_nothing(tmp_path: Path) -> None:
    write([], tmp_path / "page.html")
    assert "Nothing has been measured yet." in (tmp_path / "page.html").read_text()
    assert (tmp_path / "page.png").stat().st_size > 1000
