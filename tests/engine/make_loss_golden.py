"""Writes losses.golden.npz: four losses of Nobrainer's own software, with their gradients.

    python make_loss_golden.py losses.golden.npz

It needs Nobrainer (1.2.1, TensorFlow 2.14.1 and Keras 2.14.0 on a CPU wrote the file). For networks
of one and of four outputs (C) the file holds `logits_C` `[B, D, H, W, C]`, the class indices
`label_C` `[B, D, H, W]`, and for each loss `NAME_C`, the loss of the batch as Keras would minimise
it, and `NAME_C_gradient`, its gradient with respect to the logits. All is computed in float32. The
second scan lacks a class: with one output the only one.
"""

import sys

import nobrainer
import numpy as np
import tensorflow as tf

LOSSES = {
    "dice": nobrainer.losses.Dice,
    "jaccard": nobrainer.losses.Jaccard,
    "generalized_dice": nobrainer.losses.GeneralizedDice,
    "tversky": nobrainer.losses.Tversky,
}


def main():
    rng = np.random.default_rng(0)
    arrays = {}
    for outputs in (1, 4):
        classes = max(outputs, 2)
        logits = rng.normal(scale=2, size=(3, 4, 5, 6, outputs)).astype(np.float32)
        label = rng.integers(0, classes, logits.shape[:-1])
        label[1][label[1] == classes - 1] = 0
        arrays |= {f"logits_{outputs}": logits, f"label_{outputs}": label.astype(np.uint8)}
        truth = (label == 1)[..., None] if outputs == 1 else np.eye(outputs)[label]
        x = tf.constant(logits)
        for name, make in LOSSES.items():
            with tf.GradientTape() as tape:
                tape.watch(x)
                probability = tf.sigmoid(x) if outputs == 1 else tf.nn.softmax(x)
                loss = make()(tf.constant(truth, tf.float32), probability)
            arrays[f"{name}_{outputs}"] = loss.numpy()
            arrays[f"{name}_{outputs}_gradient"] = tape.gradient(loss, x).numpy()
    np.savez_compressed(sys.argv[1], **arrays)


if __name__ == "__main__":
    main()
