"""The one error that a person at the terminal should read."""


class InputError(Exception):
    """What a person gave cannot be used: one sentence that names it, says why and what to do.

    The command line prints the sentence alone and ends with status 2.
    """
