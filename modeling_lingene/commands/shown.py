"""What several commands print of measured sizes."""


def sizes_shown(rows: list[dict]) -> str:
    """A table of measured sizes, and what its ± and its latencies are."""
    from ..measuring.tables import size_table, told_error, told_timing

    timing = told_timing(rows)
    notes = [told_error(rows), f"latency: one image on {timing}" if timing else ""]
    return "\n".join([size_table(rows), *filter(None, notes)])
