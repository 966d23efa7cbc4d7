"""The child of the suite `predict`: how it loads, what it tells, and what it says went wrong."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from voxtune.benchmarks import predict_peer
from voxtune.benchmarks.predict_peer import Framework, first_to_end, turn


def test_memory_is_told_before_the_floor_takes_some() -> None:
    asked = list[str]()

    def floor() -> float:
        asked.append("floor")
        return 5.0

    def memory() -> int:
        asked.append("memory")
        return 7

    found = turn(Framework(lambda image: image, lambda: 0.0, memory=memory, floor=floor))
    assert asked == ["memory", "floor"]
    assert found.pop("seconds") >= 0
    assert found == {"compute": 0, "memory": 7, "floor": 5}
    assert "floor" not in turn(Framework(lambda image: image, lambda: 0.0))


def test_where_nothing_may_be_said_of_memory_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "write_text", refused)
    first_to_end()


# The module's own main, of a program that is made and predicts as it says.
SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import predict_peer

def make(*given):
    {made}
    def predict():
        {predicted}
    return predict_peer.Framework(lambda image: image, predict)

predict_peer.PROGRAMS["own"] = make, {needed!r}
sys.argv = ["predict_peer.py", "own", "unet", {place!r}]
predict_peer.main()
"""


@pytest.mark.parametrize(
    ("made", "predicted", "needed", "said"),
    [
        ("raise MemoryError", "", ["json"], {"missing": "out of memory"}),
        ("", "raise MemoryError", ["json"], {"problem": "out of memory"}),
        ("", "raise ValueError(3)", ["json"], {}),
        ("", "", ["no_such"], {"missing": "No module named 'no_such'"}),
    ],
)
def test_what_goes_wrong_is_an_answer(
    tmp_path: Path, made: str, predicted: str, needed: list[str], said: dict[str, str]
) -> None:
    np.savez(tmp_path / "weights.npz", allow_pickle=False, graph=np.array("{}"))
    folder = str(Path(predict_peer.__file__).parent)
    script = SCRIPT.format(
        folder=folder,
        place=str(tmp_path),
        made=made or "pass",
        predicted=predicted or "return 1.0",
        needed=needed,
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        input="turn\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    last = json.loads(done.stdout.splitlines()[-1])
    if said:
        assert last == said
        assert "Traceback" not in done.stderr
    else:
        assert last["version"]
        assert "ValueError: 3" in done.stderr
