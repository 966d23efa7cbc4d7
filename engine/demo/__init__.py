"""The demonstration: its Keras file, the script that trained it, and the journey."""
