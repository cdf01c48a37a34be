"""Numbers for people: tables in Markdown, which terminals, cards and the README show alike."""


def size_table(rows: list[dict]) -> str:
    """Measured sizes as a Markdown table, the most accurate first; `-` where a number was not measured."""
    columns = ["depth", "width", "components", "accuracy", "parameters", "download", "MACs"]
    timed = any("latency_ms" in row for row in rows)
    lines = [columns + ["latency"] * timed]
    for row in sorted(rows, key=lambda row: (-row["accuracy"], row["macs"], row["stored_params"])):
        cells = [row["depth"], row["width_ratio"], row["num_components"] or "-", f"{100 * row['accuracy']:.1f} %"]
        cells += [readable(row["params"]), readable(row["stored_params"]), readable(row["macs"])]
        cells += [f"{row['latency_ms']:.2f} ms" if "latency_ms" in row else "-"] * timed
        lines.append([str(cell) for cell in cells])
    return aligned_table(lines)


def aligned_table(lines: list[list[str]]) -> str:
    """A Markdown table, right-aligned; the first line is the heading."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    drawn = ["| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    return "\n".join([drawn[0], "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|", *drawn[1:]])


def readable(count: float) -> str:
    """1234567 -> `1.23 M`: three digits and a unit."""
    for unit in ("", " k", " M", " G"):
        rounded = float(f"{count:.3g}")
        if rounded < 1000:
            return f"{rounded:g}{unit}"
        count /= 1000
    return f"{count:.3g} T"
