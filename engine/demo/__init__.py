"""The whole journey on phantoms, with the pretrained network that the package carries.

It ends with the smallest form of the study in `benchmarks/studies/phantom`.
"""

import shlex
import time
from pathlib import Path

from rich.console import Console

from voxtune.engine.config import Demo
from voxtune.engine.output import check_free, make_folder, remove_folder
from voxtune.models.errors import InputError

HERE = Path(__file__).parent
PRETRAINED, GOLDEN = HERE / "brain_unet.h5", HERE / "brain_unet.golden.npz"

# What a person would type. {out} is the folder of the demonstration.
COMMANDS = (
    "phantom {out}/phantoms --train 20 --validation 2 --test 8",
    "convert {pretrained} {out}/brain --golden {golden}"
    " --spacing 3 3 3 --block 48 48 48 --classes background brain",
    "finetune {out}/brain {out}/phantoms/subjects.csv {out}/run --labels 1=lesion"
    " --steps 360 --validate-every 180 --log-every 30 --trunk-lr 3e-3 --head-lr 1e-2"
    " --ema 0.98",
    "predict {out}/run/model {out}/phantoms/subjects.csv --split test -o {out}/predictions",
    "evaluate {out}/predictions {out}/phantoms/subjects.csv --split test -o {out}/dice.csv",
    "picture {out}/predictions {out}/phantoms/subjects.csv --split test -o {out}/lesions.png",
    "study --model {out}/brain --data {out}/phantoms/subjects.csv --out {out}/study --sizes 8"
    " --seeds 1 --labels 1=lesion --steps 120 --validate-every 40 --log-every 40 --trunk-lr 3e-3"
    " --head-lr 1e-2 --ema 0.9",
)


def demo(config: Demo, console: Console) -> None:
    """Runs the commands one after the other and shows each before it runs.

    Raises:
        InputError: the folder exists, or a command failed.
    """
    from voxtune.engine.cli import STOPPED, main

    study = config.out_dir / "study"
    for folder in (config.out_dir, study):
        check_free(folder, config.overwrite)
    make_folder(config.out_dir)
    remove_folder(study)  # or it would go on with what an earlier demonstration has left
    began = time.perf_counter()
    places = {"out": config.out_dir, "pretrained": PRETRAINED, "golden": GOLDEN}
    quoted = {name: shlex.quote(str(path)) for name, path in places.items()}
    for template in COMMANDS:
        line = template.format(**quoted)
        if config.overwrite and not line.startswith("study"):
            line += " --overwrite"
        console.print(f"\n$ voxtune {line}", style="bold", highlight=False, soft_wrap=True)
        status = main(shlex.split(line))
        if status == STOPPED:
            raise KeyboardInterrupt
        if status != 0:
            raise InputError("The demonstration stopped: the command above failed.")
    console.print(
        f"\nDone in {time.perf_counter() - began:.0f} s. These are phantoms, drawn by a formula: "
        "they show that the parts work together, not how well lesions of people are found.\n"
        f"Did transfer help? {study / 'report.html'} says what this small study shows; its picture "
        f"is {study / 'figures' / 'violins.png'}",
        highlight=False,
        soft_wrap=True,
    )
