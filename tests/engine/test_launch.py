"""The files to start runs on clusters with, run with stand-ins for what clusters have."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ENGINE = Path(__file__).parents[2] / "engine"
LAUNCH = ENGINE / "launch"

SRUN = """#!/bin/bash
# Two tasks; says the largest status. What a task was told is in its file.
shift
largest=0
for rank in 0 1; do
    SLURM_PROCID=$rank "$@"
    status=$?
    [ $status -le $largest ] || largest=$status
done
exit $largest
"""
VOXTUNE = """#!/bin/bash
printf '%s\\n' "$@" >"told.$SLURM_PROCID"
statuses=($STATUSES)
exit ${statuses[$SLURM_PROCID]}
"""
GCLOUD = """#!/bin/bash
# The command comes last, and is run by a shell as on another machine.
case ${!#} in
*"pip install"*) ;;
*) HOME=$PWD bash -c "${!#}" ;;
esac
"""


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class TestSlurm:
    @pytest.fixture
    def job(self, tmp_path: Path) -> Any:
        """Runs the job once, its two processes ending with these statuses.

        Its own status, and whether it was put back into the queue.
        """
        for name, text in (
            ("srun", SRUN),
            ("voxtune", VOXTUNE),
            ("scontrol", "#!/bin/bash\necho $* >requeued\n"),
        ):
            program(tmp_path / "bin" / name, text)

        def run(statuses: str, *options: str) -> tuple[int, bool]:
            requeued = tmp_path / "requeued"
            requeued.unlink(missing_ok=True)
            done = subprocess.run(
                ["bash", LAUNCH / "slurm.sh", *options],
                cwd=tmp_path,
                env={
                    **os.environ,
                    "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                    "SLURM_JOB_ID": "7",
                    "STATUSES": statuses,
                    "RUN": "a run",
                },
                check=False,
            )
            if requeued.exists():
                assert requeued.read_text() == "requeue 7\n"
            return done.returncode, requeued.exists()

        return run

    @pytest.mark.parametrize(
        ("statuses", "wanted"),
        [
            ("0 0", (0, False)),
            ("75 75", (75, True)),
            ("69 137", (137, True)),
            ("143 69", (143, True)),
            ("1 1", (1, False)),
            ("2 2", (2, False)),
            ("2 69", (2, False)),
            ("134 2", (2, False)),
        ],
    )
    def test_what_is_tried_again(self, job: Any, statuses: str, wanted: tuple[int, bool]):
        assert job(statuses) == wanted

    def test_bad_input_of_the_last_start_is_forgotten(self, job: Any):
        assert job("2 2") == (2, False)
        assert job("75 75") == (75, True)

    def test_lost_processes_are_counted_apart_from_time_limits(self, job: Any):
        assert all(job(each)[1] for each in ["69 0", "75 75"] * 10)
        assert job("69 0") == (69, False)
        assert job("75 75") == (75, True)

    def test_the_command_resumes_what_has_begun(self, job: Any, tmp_path: Path):
        job("0 0", "--steps", "7", "two words")
        told = (tmp_path / "told.1").read_text().splitlines()
        first = ["finetune", "model", "store", "a run", "--steps", "7", "two words"]
        assert told == [*first, "--distributed", "slurm"]
        (tmp_path / "a run").mkdir()
        (tmp_path / "a run" / "config.json").touch()
        job("0 0", "--steps", "7")
        told = (tmp_path / "told.0").read_text().splitlines()
        assert told == ["resume", "a run", "--distributed", "slurm"]


def test_a_tpu_slice_gets_the_words_that_it_was_given(tmp_path: Path):
    program(tmp_path / "bin" / "gcloud", GCLOUD)
    program(tmp_path / "voxtune" / "bin" / "voxtune", '#!/bin/bash\nprintf "%s\\n" "$@"\n')
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    names = {"TPU": "t", "ZONE": "z", "RUN": str(tmp_path / "it's"), "MODEL": "m", "DATA": "d"}

    def told(*options: str) -> list[str]:
        command = ["bash", str(LAUNCH / "tpu.sh"), *options]
        environment = {**os.environ, "PATH": path, **names}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    rule = "block1/* freeze; $HOME"
    given = ["finetune", "m", "d", names["RUN"], "--distributed", "tpu", "--rule", rule]
    assert told("--rule", rule) == given
    (tmp_path / "it's").mkdir()
    (tmp_path / "it's" / "config.json").touch()
    assert told("--rule", rule) == ["resume", names["RUN"], "--distributed", "tpu"]


def test_the_jobset_is_yaml_that_names_its_own_parts():
    yaml = pytest.importorskip("yaml")
    account, role, binding, jobs = yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]
    job = jobs["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    (container,) = pod["containers"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2],
    }
    mounts = {each["name"] for each in container["volumeMounts"]}
    assert mounts == {each["name"] for each in pod["volumes"]}
    subprocess.run(["bash", "-n", "-c", container["command"][-1]], check=True)


def test_pages_link_to_files_and_tables_are_even():
    page = (ENGINE / "SCALING.md").read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)", page)
    assert links
    for link in links:
        assert (ENGINE / link).is_file(), link
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert all(len({line.count("|") for line in each.splitlines()}) == 1 for each in tables)
