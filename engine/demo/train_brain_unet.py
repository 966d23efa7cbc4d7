"""Trains `brain_unet.h5`, the pretrained network that the demo fine-tunes.

The file is a whole-model Keras .h5 with the layers of Nobrainer 1.2.1's `unet`, one for one, but
3 filters where Nobrainer has 16, so that it is small enough to ship. It extracts the brain from a
T1 volume without contrast agent: 64^3 voxels of 3 mm, RAS, z-scored over the whole volume.

It was trained on 32 healthy phantoms: 500 steps on random 32^3 crops, then 10 on whole heads, with

    KERAS_BACKEND=jax python engine/demo/train_brain_unet.py

which took 412 s on two busy CPU cores and printed, for 8 phantoms never trained on,

    held-out Dice 0.967, lowest 0.957, of 8 heads
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

from voxtune.engine.phantom import make_phantom

OUTPUT = Path(__file__).with_name("brain_unet.h5")
GOLDEN = Path(__file__).with_name("brain_unet.golden.npz")
BASE = 3
TRAIN_SEEDS = range(1000, 1032)
TEST_SEEDS = range(3000, 3008)  # seen by nothing but the figure in the docstring
CROP = 32  # voxels; XLA's 3D convolution on a CPU is slow, and a crop costs an eighth of a head
CROP_STEPS = 500
WHOLE_STEPS = 10  # the last steps see whole heads, as prediction does
PEAK_RATE = 4e-3


def build_unet(size: int | None = 64, base: int = BASE) -> keras.Model:
    """Nobrainer's U-Net; input [B, size, size, size, 1] z-scored, output likewise, probability."""

    def convolve(x: keras.KerasTensor, filters: int) -> keras.KerasTensor:
        # Fourteen layers without normalisation: Keras's default start would lose the signal.
        x = layers.Conv3D(filters, 3, padding="same", kernel_initializer="he_normal")(x)
        return layers.Activation("relu")(x)

    inputs = x = layers.Input((size, size, size, 1))
    skips = []
    for level in range(3):
        x = convolve(x, base * 2**level)
        x = convolve(x, base * 2 ** (level + 1))
        skips.append(x)
        x = layers.MaxPooling3D(2)(x)
    x = convolve(x, base * 8)
    x = convolve(x, base * 16)
    for level, skip in reversed(list(enumerate(skips))):
        x = layers.Conv3DTranspose(base * 2 ** (level + 2), 2, strides=2, padding="same")(x)
        x = layers.Concatenate(axis=-1)([skip, x])
        x = convolve(x, base * 2 ** (level + 1))
        x = convolve(x, base * 2 ** (level + 1))
    x = layers.Conv3D(1, 1, padding="same")(x)
    x = layers.Activation("sigmoid")(x)
    return keras.Model(inputs, x, name="unet")


def z_score(volume: np.ndarray) -> np.ndarray:
    return (volume - volume.mean()) / volume.std()


def load(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A healthy phantom in RAS: image [64, 64, 64] scanner units, brain [64, 64, 64] 0 or 1."""
    phantom = make_phantom("healthy", seed)
    return phantom.image, phantom.label.astype(np.float32)


def augmented(
    rng: np.random.Generator, subjects: list[tuple[np.ndarray, np.ndarray]], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless batches of one [1, size, size, size, 1]: gamma, noise, left-right flip, crop."""
    while True:
        for index in rng.permutation(len(subjects)):
            image, brain = subjects[index]
            bright = float(np.quantile(image, 0.995))
            image = bright * (image / bright) ** rng.uniform(0.75, 1.35)
            image = image + rng.normal(0, rng.uniform(0, 30), image.shape)
            if rng.random() < 0.5:
                image, brain = image[::-1], brain[::-1]
            corner = rng.integers(0, 64 - size + 1, 3)
            crop = (None, *(slice(start, start + size) for start in corner), None)
            yield z_score(image).astype(np.float32)[crop], brain[crop].copy()


def dice_and_cross_entropy(truth: keras.KerasTensor, probability: keras.KerasTensor) -> object:
    overlap = ops.sum(truth * probability)
    dice = (2 * overlap + 1) / (ops.sum(truth) + ops.sum(probability) + 1)
    return 1 - dice + ops.mean(keras.losses.binary_crossentropy(truth, probability))


def held_out_dice(model: keras.Model) -> list[float]:
    scores = []
    for seed in TEST_SEEDS:
        image, brain = load(seed)
        found = model.predict(z_score(image)[None, ..., None], verbose=0)[0, ..., 0] > 0.5
        scores.append(float(2 * (found * brain).sum() / (found.sum() + brain.sum())))
    return scores


def save_golden(model: keras.Model, names: list[str]) -> None:
    """What Keras computes for a crop of a head: every fourth voxel of each
    activation, and the output.

    Args:
        model: takes any size.
        names: what the layers are called in the file, in the order of the model's.
    """
    head = z_score(load(TEST_SEEDS[0])[0])
    x = head[None, 24:40, 24:40, 24:40, None].astype(np.float32)
    inner = {
        name: layer.output
        for name, layer in zip(names, model.layers, strict=True)
        if isinstance(layer, layers.Activation)
    }
    found = keras.Model(model.inputs, inner).predict(x, verbose=0)
    entries = {f"act4:{name}": value[:, ::4, ::4, ::4] for name, value in found.items()}
    np.savez_compressed(GOLDEN, x=x, y=model.predict(x, verbose=0), **entries)


def main() -> None:
    start = time.monotonic()
    keras.utils.set_random_seed(0)
    model = build_unet()  # built first, so that its layers get the plain names
    trainee = build_unet(size=None)
    rate = keras.optimizers.schedules.CosineDecay(
        PEAK_RATE / 20, CROP_STEPS + WHOLE_STEPS, warmup_target=PEAK_RATE, warmup_steps=40
    )
    trainee.compile(keras.optimizers.Adam(rate, clipnorm=1.0), loss=dice_and_cross_entropy)
    rng = np.random.default_rng(0)
    subjects = [load(seed) for seed in TRAIN_SEEDS]
    for size, steps in ((CROP, CROP_STEPS), (64, WHOLE_STEPS)):
        batches = augmented(rng, subjects, size)
        trainee.fit(batches, steps_per_epoch=10, epochs=steps // 10, verbose=2)
    model.set_weights(trainee.get_weights())
    model.save(OUTPUT, include_optimizer=False)
    save_golden(trainee, [layer.name for layer in model.layers])
    scores = held_out_dice(model)
    print(f"{model.count_params():,} parameters, {OUTPUT.stat().st_size:,} bytes")
    print(f"held-out Dice {np.mean(scores):.3f}, lowest {min(scores):.3f}, of {len(scores)} heads")
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
