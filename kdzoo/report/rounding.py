"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "\N{EN DASH}"


def significant(value: float) -> str:
    """Three significant digits, whole numbers from 100 on: 0.0120, 4.56, 1,230."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def counted(value: float) -> str:
    """A count in the unit that suits it: 868, 78.0 k, 1.73 M, 4.09 G, 2.50 T."""
    return scaled(value, ("", " k", " M", " G", " T", " P", " E"), 1000)


def sized(mib: float) -> str:
    """A size in the unit that suits it: 512 B, 4.63 KiB, 6.89 MiB."""
    return scaled(mib * 2**20, (" B", " KiB", " MiB", " GiB"), 1024)


def scaled(value: float, units: Sequence[str], step: int) -> str:
    power = 0
    while power + 1 < len(units) and value >= 0.9995 * step:
        value, power = value / step, power + 1
    return f"{value:.0f}" + units[0] if power == 0 else significant(value) + units[power]


def duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def aged(seconds: float) -> str:
    """How long ago something was, in its largest unit: 12 s, 4 min, 3 h, 25 days."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {'day' if unit == 'days' and count == 1 else unit}"
    return f"{seconds:.0f} s"
