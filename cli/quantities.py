"""Sizes and durations as people write them: 50M, 64KiB, 90s, 1h30m."""

import re
from typing import Final

from bytelm.errors import ConfigError

_PREFIXES: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_DURATION: Final = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes: a number with k, M, G or T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024), with or without a B.

    Raises:
        ConfigError: Written otherwise, or less than one byte.

    Example:
        >>> parse_size("1.5G"), parse_size("64KiB"), parse_size("300")
        (1500000000, 65536, 300)
    """
    match = _SIZE.fullmatch(text.strip())
    size = 0
    if match:
        number, prefix, binary = match.groups()
        size = round(float(number) * (1024 if binary else 1000) ** _PREFIXES[prefix.lower()])
    if size < 1 or (match and match[3] and not match[2]):
        raise ConfigError(f"{text!r} is no size; write it like 50M, 1.5G, 64KiB or 300")
    return size


def parse_duration(text: str) -> float:
    """Seconds: days, hours, minutes and seconds in this order, or a bare number of seconds.

    Raises:
        ConfigError: Written otherwise, or no time at all.

    Example:
        >>> parse_duration("1h30m"), parse_duration("90s"), parse_duration("90")
        (5400.0, 90.0, 90.0)
    """
    written = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", written):
        written += "s"
    match = _DURATION.fullmatch(written)
    seconds = 0.0
    if match:
        days, hours, minutes, rest = (float(part or 0) for part in match.groups())
        seconds = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    if seconds <= 0:
        raise ConfigError(f"{text!r} is no duration; write it like 90s, 5m or 1h30m")
    return seconds


def size(size_bytes: float) -> str:
    """Bytes in the largest decimal unit that leaves at least one before the point.

    Example:
        >>> size(1_234_567)
        '1.23 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.2f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} TB"


def counted(number: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "document"), counted(2048, "shard")
        ('1 document', '2,048 shards')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Seconds as the two largest units that matter.

    Example:
        >>> duration(5400), duration(75), duration(3.2)
        ('1h 30m', '1m 15s', '3s')
    """
    whole = round(seconds)
    for large, small, large_s, small_s in (("d", "h", 86_400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if whole >= large_s:
            return f"{whole // large_s}{large} {whole % large_s // small_s:02d}{small}"
    return f"{whole}s"
