"""Sizes as people read them."""


def readable(size: int | float) -> str:
    """Bytes to three digits, in the decimal units of disks and of the Hub."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
