"""Numbers as a person reads them. No JAX here."""

import math

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"  # in the place of a number that there is not


def number(value: float, digits: int = 3) -> str:
    """With so many digits after the point."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    shown = f"{value:.{digits}f}"
    if float(shown) == 0:
        return shown.removeprefix("-")
    return shown.replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    """The same with a plus before what is above zero."""
    shown = number(value, digits)
    return f"+{shown}" if value > 0 and not math.isinf(value) and float(shown) else shown


def interval(low: float, high: float, digits: int = 3) -> str:
    """From the lower to the upper end."""
    if math.isnan(low) and math.isnan(high):
        return NOTHING
    return f"{number(low, digits)} to {number(high, digits)}"


def rounded(value: float) -> str:
    """With three digits that count, as 0.001, 1e-05, 12 or 1,230."""
    if not math.isfinite(value):
        return number(value)
    if 1000 <= abs(value) < 1e9:
        return f"{float(f'{value:.3g}'):,.0f}".replace("-", MINUS)
    return f"{value:.3g}"


def p_value(value: float) -> str:
    """A probability."""
    if math.isnan(value):
        return NOTHING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def counted(count: int, noun: str) -> str:
    """How many of what: 1 seed, 2 seeds."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size(count: float) -> str:
    """Bytes."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB" if math.isfinite(count) else NOTHING
