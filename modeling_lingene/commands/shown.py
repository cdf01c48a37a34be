"""What several commands print of measured sizes."""

from collections.abc import Callable


def sizes_shown(rows: list[dict], fetched: Callable[[int], int]) -> str:
    """A table of measured sizes, and what its ± and its latencies are.

    Args:
        fetched: number of components -> bytes, as `Bundle.download_bytes`.
    """
    from ..measuring.tables import size_table, told_error, told_timing

    timing = told_timing(rows)
    notes = [told_error(rows), f"latency: one image on {timing}" if timing else ""]
    return "\n".join([size_table(rows, fetched=fetched), *filter(None, notes)])
