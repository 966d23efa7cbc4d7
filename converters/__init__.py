"""Keras to Flax. This package knows `voxtune.models` and never `voxtune.engine`."""
