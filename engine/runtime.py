"""What is set before JAX looks for devices, and that it finds some."""

import sys

from voxtune.engine.compile_cache import use_compile_cache
from voxtune.engine.config import Finetune
from voxtune.engine.deterministic import be_deterministic
from voxtune.engine.mesh import find_devices
from voxtune.engine.processes import is_first, join


def begin(config: Finetune) -> None:
    """Sets up JAX for a run; to be called before anything asks for devices.

    Raises:
        InputError: the other processes or devices are not found, or it is too late.
    """
    if config.deterministic:
        be_deterministic()
    reason = use_compile_cache()
    join(config.distributed)
    find_devices()
    if reason is not None and is_first():
        print(f"voxtune: warning: compiled programs are not kept: {reason}", file=sys.stderr)
