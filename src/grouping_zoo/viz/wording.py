"""Numbers in words."""


def percent(fraction: float) -> str:
    """Per cent without decimals, "31 %"; a fraction above 0 never reads as none."""
    return "< 1 %" if 0 < fraction < 0.005 else f"{100 * fraction:.0f} %"


def counted(count: int, noun: str) -> str:
    """A number with its noun, "1 group" or "8 groups"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
