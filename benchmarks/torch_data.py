"""The data path of PyTorch and MONAI, timed when asked: a child of the suite `data`.

It needs torch, monai and nibabel, and no voxtune: it runs in an environment of its own. Scans are
loaded, z-scored and kept in memory (CacheDataset, with the indices of labelled voxels); an example
is a block that RandCropByPosNegLabeld cuts, a third of them round a labelled voxel.

    torch_data.py FILE WORKERS

FILE is JSON: `images` and `labels`, paths; `edge` of a block; `batch`; `batches`; `seed`. It writes
a line of JSON with its versions, and shape and types of a batch; then, for each line on standard
input, takes some batches that do not count, then others for a while, and answers with the seconds
that `batches` of them took.
"""

import json
import os
import sys
import time
from pathlib import Path

WARM, LEAST = 12, 0.5  # batches and seconds, as of voxtune


def main() -> None:
    """Takes turns with its parent."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        import monai
        import torch
        from monai import transforms
        from monai.data import CacheDataset, DataLoader
        from torch.utils.data import RandomSampler
    except ImportError as error:
        answer(missing=str(error))
        return
    given, workers = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    monai.utils.set_determinism(given["seed"])
    both, block = ["image", "label"], (given["edge"],) * 3
    steps = transforms.Compose(
        [
            transforms.LoadImaged(both),
            transforms.EnsureChannelFirstd(both),
            transforms.NormalizeIntensityd("image"),
            transforms.CastToTyped("label", torch.uint8),
            transforms.FgBgToIndicesd("label"),
            transforms.RandCropByPosNegLabeld(
                both,
                "label",
                block,
                pos=1,
                neg=2,
                fg_indices_key="label_fg_indices",
                bg_indices_key="label_bg_indices",
            ),
            transforms.SelectItemsd(both),
        ]
    )
    pairs = zip(given["images"], given["labels"], strict=True)
    files = [{"image": image, "label": label} for image, label in pairs]
    cases = CacheDataset(files, steps, num_workers=1, copy_cache=False, progress=False)
    loader = DataLoader(
        cases,
        batch_size=given["batch"],
        sampler=RandomSampler(cases, replacement=True, num_samples=10**9),
        num_workers=workers,
    )
    batches = iter(loader)
    first = next(batches)
    versions = f"torch {torch.__version__}, monai {monai.__version__}"
    types = [str(first[name].dtype).removeprefix("torch.") for name in both]
    answer(version=versions, shape=list(first["image"].shape), types=types)
    for _ in sys.stdin:
        for _ in range(WARM):
            next(batches)
        count, began = given["batches"], time.perf_counter()
        taken, took = 0, 0.0
        while took < LEAST:
            for _ in range(count):
                next(batches)
            taken, took = taken + count, time.perf_counter() - began
        answer(seconds=took * count / taken)


if __name__ == "__main__":
    main()
