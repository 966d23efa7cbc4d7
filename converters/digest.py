"""What identifies a file: the SHA-256 of its bytes."""

import hashlib
from pathlib import Path


def sha256_of(*paths: Path) -> str:
    """Hex digest of the files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(2**20), b""):
                digest.update(block)
    return digest.hexdigest()
