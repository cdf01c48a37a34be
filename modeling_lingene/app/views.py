"""What the page shows, as HTML: pure functions of numbers and names. Names are shown as they stand, never markup."""

import base64
import io
import shlex
from collections.abc import Sequence
from html import escape
from typing import Any

from ..budget_lingene import METRICS
from ..configuration_base_lingene import Size
from ..families_lingene import image_token_name
from ..measuring.plots import COSTS
from ..measuring.tables import EXPLAINED, bytes_shown, readable
from .looking import Answer, enlarged, overlay
from .sizes import Materialised, ShownBundle


MEASURE = "Accuracy and budgets need measured sizes, and this bundle has none. Measure them:"
CSS = """
.lingene { line-height: 1.45; overflow-wrap: anywhere; }
.lingene h1 { margin: 0.5rem 0; font-size: 1.6rem; }
.lingene h2 { margin: 1rem 0 0.5rem; font-size: 1.2rem; }
.lingene h3 { margin: 0.2rem 0 0.4rem; font-size: 1rem; }
.lingene table, .lingene tbody, .lingene tr { border: 0 !important; }
.lingene table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: 0; }
.lingene tr > * { border: 0 !important; border-bottom: 1px solid #8886 !important; padding: 0.25rem 0 !important; }
.lingene tr > * { text-align: left !important; font-weight: normal; }
.lingene tr > * + * { text-align: right !important; padding-left: 0.8rem !important; white-space: nowrap; }
.lingene .side { display: flex; flex-wrap: wrap; gap: 1rem; }
.lingene .side > * { flex: 1 1 300px; min-width: 0; margin: 0; }
.lingene .look > * { flex: 1 1 130px; max-width: 224px; }
.lingene p { margin: 0.6rem 0; }
@media (max-width: 40rem) { .lingene .look > figure:first-child { flex-basis: 100%; } }
.lingene figure { margin: 0; }
.lingene figure img { width: 100%; height: auto; display: block; }
.lingene .look figure { margin-top: 0.5rem; }
.lingene .look img { image-rendering: pixelated; border-radius: 4px; }
.lingene .side > .cost { position: relative; background: white; border-radius: 4px; max-width: 30rem; }
.lingene .mark { position: absolute; width: 26px; height: 26px; margin: -13px 0 0 -13px; border: 4px solid #d55e00;
  border-radius: 50%; box-shadow: 0 0 0 2px white; box-sizing: border-box; }
.lingene .bar { height: 0.35rem; background: #0072b2; border-radius: 2px; margin-bottom: 0.25rem; }
.lingene .wrong { border-left: 4px solid #d55e00; padding-left: 0.6rem; }
.lingene code { white-space: pre-wrap; font-size: 0.9em; }
.samples, .samples .grid-wrap, .samples .grid-container { height: auto !important; max-height: none !important; }
.samples .grid-wrap { overflow: visible !important; min-height: 0 !important; }
.samples .grid-container { grid-template: none / repeat(4, minmax(0, 1fr)) !important; }
input:focus-visible, button:focus-visible { outline: 3px solid #0072b2 !important; outline-offset: 2px; }
"""


def block(content: str) -> str:
    """A part of the page."""
    return f'<div class="lingene">{content}</div>'


def paragraph(words: str) -> str:
    """Plain words; names that messages set in backticks are words here."""
    return f"<p>{escape(words.replace('`', ''))}</p>"


def sentence(words: str) -> str:
    """Something that went wrong, or is missing; read out by a screen reader when it appears."""
    return f'<p class="wrong" role="status">{escape(words)}</p>'


def facts(bundle: ShownBundle, size: Size, held: Materialised, full: Materialised) -> str:
    """What a size costs and is worth, beside all that is stored."""
    sizes, models = (size, bundle.full), (held, full)
    lines = {
        "Layers": [str(one.depth) for one in sizes],
        "Width": [str(one.width_ratio) for one in sizes],
        "Components": [str(one.num_components) for one in sizes],
        "Parameters": [readable(one.params) for one in models],
        "Download": [bytes_shown(bundle.fetched(one.num_components)) for one in sizes],
        "MACs of one image": [readable(one.macs) for one in models],
    }
    if bundle.rows:
        lines[METRICS[bundle.metric()].axis] = [bundle.value(one) or "not measured" for one in sizes]
    lines["Latency here, one image"] = [f"{one.latency_ms:.2f} ms" for one in models]
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, cells in lines.items()
    )
    head = '<tr><td></td><th scope="col">this size</th><th scope="col">all that is stored</th></tr>'
    return f"<h2>Cost and worth</h2><table>{head}{body}</table>{notes(bundle, size, held)}"


def notes(bundle: ShownBundle, size: Size, held: Materialised) -> str:
    """What the numbers are of, and what is missing and how to get it."""
    said = f"Latency: median on {held.device}, taken by this page when this depth and width were first shown."
    parts = [f"<p>{escape(said)}</p>"]
    if not bundle.rows:
        parts.append(sentence(MEASURE) + command("lingene sweep", bundle.name, "--data DATA"))
    elif bundle.row(size) is None:
        grid = f"--data DATA --depths {size.depth} --widths {size.width_ratio} --components {size.num_components}"
        told = {"depth": "Depth {} was never trained.", "num_components": "{} components were never trained."}
        said = [told[field].format(getattr(size, field)) for field in bundle.config.untrained(size)]
        parts.append(sentence(" ".join([*said, "This size was not measured. Measure it:"])))
        parts.append(command("lingene sweep", bundle.name, grid))
    if bundle.rows:
        on = ", ".join(sorted({f"{row['dataset']} ({row['split']})" for row in bundle.rows}))
        against = ", ".join(sorted({row["reference"] for row in bundle.rows if "reference" in row}))
        words = {"on": on, "reference": against, "token": image_token_name(bundle.config)}
        said = EXPLAINED[bundle.metric()].format(**words).replace("`", "")
        parts.append(f"<p>{escape(said)}</p>")
    return "".join(parts)


def command(words: str, name: str, options: str) -> str:
    """A line for a shell."""
    return f"<p><code>{escape(f'{words} {shlex.quote(name)} {options}')}</code></p>"


def costs(bundle: ShownBundle, size: Size, drawn: dict[str, tuple[str, list]]) -> str:
    """The pictures of accuracy against cost, with the size marked.

    Args:
        drawn: by cost the picture as data URI, and the place of every row in it, see `plot_cost`.
    """
    if not drawn:
        return ""  # the facts say what is missing
    row, pictures = bundle.row(size), []
    for cost, (uri, places) in drawn.items():
        said = f"{METRICS[bundle.metric()].axis} of {len(bundle.rows)} measured sizes against {COSTS[cost]}"
        mark = ""
        if row is not None:
            x, y = places[list(bundle.rows).index(row)]
            mark = f'<span class="mark" style="left:{100 * x:.2f}%;top:{100 * y:.2f}%"></span>'
            said += f"; marked: {size}, {readable(row[cost])}, {bundle.value(size)}"
        picture = f'<img src="{uri}" alt="{escape(said)}">{mark}'
        pictures.append(f'<figure class="cost">{picture}</figure>')
    title = f"<h2>{METRICS[bundle.metric()].axis} and cost of every measured size</h2>"
    marked = f"Marked: {size}." if row is not None else "This size is not marked: it was not measured."
    return f'{title}<div class="side">{"".join(pictures)}</div><p>{escape(marked)}</p>'


def answers(sizes: Sequence[tuple[str, Answer]], picture: Any) -> str:
    """What sizes say of a picture, side by side, with where they look.

    Args:
        sizes: name and answer.
        picture: (h, w, 3) uint8, as the model gets it.
    """
    columns = [image(enlarged(picture), "The picture as the model gets it", "the picture as the model gets it")]
    for name, one in sizes:
        best = f": {one.classes[0][0]}" if one.classes else ""
        said = [f"<h3>{escape(name + best)}</h3>"]
        if not one.classes:
            said.append("<p>This bundle is an encoder: it names no classes.</p>")
        for label, share in one.classes:
            said.append(f"<div>{escape(label)} <b>{100 * share:.1f} %</b></div>")
            said.append(f'<div class="bar" style="width:{100 * share:.1f}%"></div>')
        if one.attention is None:
            said.append("<p>Models of this family give no attention to show.</p>")
        else:
            alt = f"Attention of the class token, {name}: brightest where {brightest(one)}"
            said.append(image(enlarged(overlay(picture, one.attention)), alt, "where its class token looks"))
        columns.append(f"<div>{''.join(said)}</div>")
    legend = "Attention of the last layer's class token to the patches, mean over heads: yellow most, violet least."
    title = "<h2>What it says of the picture</h2>"
    return f'{title}<div class="side look">{"".join(columns)}</div><p>{legend}</p>'


def brightest(one: Answer) -> str:
    """Where the most attention is, in words."""
    down, across = (int(place) for place in divmod(one.attention.argmax(), one.attention.shape[1]))
    rows, columns = one.attention.shape
    return f"patch {down + 1} of {rows} down, {across + 1} of {columns} across is"


def image(picture: Any, alt: str, caption: str) -> str:
    """A PIL image with its words."""
    said = f"<figcaption>{escape(caption)}</figcaption>"
    return f'<figure><img src="{data_uri(picture)}" alt="{escape(alt)}">{said}</figure>'


def data_uri(picture: Any) -> str:
    """A PIL image as part of a page."""
    written = io.BytesIO()
    picture.save(written, "PNG")
    return png_uri(written.getvalue())


def png_uri(png: bytes) -> str:
    """The bytes of a PNG as part of a page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
