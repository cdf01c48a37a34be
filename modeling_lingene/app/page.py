"""The page to try bundles on, with Gradio: choose a size or a budget, see what it costs and what it says of a picture.

    lingene app BUNDLE [BUNDLE ...] --data FOLDER

Nothing here belongs to one visitor: what they chose is in their page and in `gr.State`, and events carry it along.
"""

import errno
import shlex
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..budget_lingene import BUDGETS
from ..configuration_base_lingene import Size
from ..extras import require
from ..images.pictures import load_pictures
from ..measuring.plots import COSTS, plot_cost
from ..progress import quiet_loading
from . import views
from .cache import Cache
from .looking import answer, opened, prepared, seen
from .sizes import ShownBundle, Sizes, read_bundles


PORT, HOST = 7860, "127.0.0.1"
MOST_SAMPLES = 8
PICTURE_BYTES = 256 << 20  # of all prepared pictures that are held at once
UPLOAD, KEPT_SECONDS = "32mb", 3600  # of a picture that is dropped
VISITORS = 4  # served at once; the others wait
BUDGET_WORDS = {"max_macs": "MACs", "max_params": "parameters", "max_latency_ms": "latency"}
PICK = "Drop a picture, or pick a sample."
NO_PROCESSOR = "This bundle has no preprocessor_config.json, so that it cannot be shown pictures: save its image "
NO_PROCESSOR += "processor beside it."


def serve(names: Sequence[str], data: str | None = None, host: str = HOST, port: int = PORT) -> None:
    """Show bundles on a page until it is interrupted.

    Args:
        names: bundles, by folder or name on the Hub.
        data: sample pictures, as for `load_pictures`.
        host, port: where to listen.

    Raises:
        ValueError: the port is in use, or a bundle or the samples cannot be read; before any work.
        ImportError: Gradio or matplotlib is missing; the message says what to install.
    """
    check_place(host, port)
    page = Page(read_bundles(names), [] if data is None else samples(data))
    with quiet_loading():
        blocks = launched(page, host, port)
        print(f"http://{host}:{port}   Ctrl-C ends it", flush=True)
        blocks.block_thread()


def launched(page: "Page", host: str, port: int) -> Any:
    """The page as `gradio.Blocks` that answers from now on, in threads of its own."""
    gr = require("gradio")
    blocks = Layout(page, gr).blocks
    settings = {"server_name": host, "server_port": port, "max_file_size": UPLOAD, "css": views.CSS}
    settings |= {"quiet": True, "ssr_mode": False, "footer_links": [], "prevent_thread_lock": True}
    # Blue: white words on Gradio's orange are hard to read. The system's letters: nothing is fetched from elsewhere.
    blocks.launch(**settings, theme=gr.themes.Default(primary_hue="blue", font="system-ui", font_mono="monospace"))
    return blocks


def check_place(host: str, port: int) -> None:
    """Refuse a port that nothing can listen to, before anything is read.

    Raises:
        ValueError: says why, and the way out.
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"`port` must be from 1 to 65535, got {port}.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what ended just now does not count
            probe.bind((host, port))
    except socket.gaierror:
        raise ValueError(f"`host` {host} is no address of this machine: use 127.0.0.1, or 0.0.0.0 for all.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"`port` {port} is in use: end what listens there, or choose another.") from None
        raise ValueError(f"`host` {host}, `port` {port} cannot be listened to: {error.strerror}.") from None


def samples(data: str, most: int = MOST_SAMPLES) -> list[tuple[Any, str]]:
    """Some pictures of a set, evenly over it, each with its name; those that do not decode are left out."""
    pictures = load_pictures(data, "test", others=True)
    step = max(1, len(pictures) // most)
    found = []
    for place in range(0, len(pictures), step)[:most]:
        picture, _ = pictures.decoded(place)
        path = pictures.images.path(place) if hasattr(pictures.images, "path") else None
        if picture is not None:
            found.append((picture, Path(path).stem if path else f"sample {len(found) + 1}"))
    if not found:
        raise ValueError(f"`data` {data}: none of its pictures decodes.")
    return found


class Page:
    """What the page does, without how it looks.

    Args:
        bundles: by name.
        samples: pictures (RGB) with their names.
    """

    def __init__(self, bundles: dict[str, ShownBundle], samples: Sequence[tuple[Any, str]] = ()):
        self.bundles, self.samples, self.sizes = bundles, samples, Sizes(bundles)
        self._seen = Cache(self._prepare, lambda pixels: pixels.nbytes, PICTURE_BYTES)
        self._drawn = {name: drawn(bundle) for name, bundle in bundles.items()}

    def show(self, name: str, depth: float | str, width: str, components: float, picture: int | str | None) -> tuple:
        """Everything that the page says of a size: numbers, answers, pictures of cost, code.

        Args:
            depth: layers, or those of each of several stages as in "2-6".
            picture: a sample by its place, a file that was dropped by its path, or None.
        """
        bundle = self.bundles[name]
        try:
            size = bundle.config.size(depth if isinstance(depth, str) else int(depth), width, int(components))
            held, full = self.sizes(bundle, size), self.sizes(bundle, bundle.full)
        except (ValueError, OSError) as error:
            return (views.block(views.sentence(" ".join(str(error).split()))), "", "", "")
        parts = views.facts(bundle, size, held, full), self._answers(bundle, (held, full), picture)
        return (*map(views.block, (*parts, views.costs(bundle, size, self._drawn[name]))), bundle.code(size))

    def _answers(self, bundle: ShownBundle, sizes: tuple, picture: int | str | None) -> str:
        if bundle.processor is None or picture is None:
            return views.sentence(NO_PROCESSOR) if bundle.processor is None else f"<p>{PICK}</p>"
        try:
            pixels = self._seen((bundle.name, picture))
        except ValueError as error:
            return views.sentence(str(error))
        said = [(words, answer(one, pixels)) for words, one in zip(("this size", "all that is stored"), sizes)]
        return views.answers(said, seen(pixels, bundle.processor))

    def _prepare(self, key: tuple) -> Any:
        name, picture = key
        opened_one = self.samples[picture][0] if isinstance(picture, int) else opened(picture)
        return prepared(self.bundles[name].processor, opened_one)

    def within(self, name: str, budget: str, percent: float) -> tuple[Size | None, str]:
        """The best measured size within a share of the largest one's cost, and why; None where there is none."""
        if not self.bundles[name].rows:
            return None, views.MEASURE + f" lingene sweep {shlex.quote(name)} --data DATA"
        try:
            return self.bundles[name].within(budget, percent / 100)
        except ValueError as error:
            return None, str(error)


def drawn(bundle: ShownBundle) -> dict[str, tuple[str, list]]:
    """By cost the picture of a bundle's measured sizes as data URI, and the places of its rows in it."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for cost in COSTS if bundle.rows else ():
            path = Path(folder) / f"{cost}.png"
            places = plot_cost(bundle.rows, cost, path)
            found[cost] = views.png_uri(path.read_bytes()), places
    return found


class Layout:
    """How the page looks, and which event calls what.

    Args:
        page: what it does.
        gr: the module of Gradio, which takes seconds to import.
    """

    def __init__(self, page: Page, gr: Any):
        self.page, self.gr = page, gr
        bundle = next(iter(page.bundles.values()))
        with gr.Blocks(title="Sizes of a bundle", analytics_enabled=False, delete_cache=(KEPT_SECONDS,) * 2) as blocks:
            gr.HTML(views.block("<h1>One bundle, Vision Transformers of many sizes</h1>"))
            with gr.Row():
                with gr.Column(min_width=300):
                    self._choices(bundle)
                    self.facts = gr.HTML()
                with gr.Column(min_width=300):
                    self._pictures()
                    self.answers = gr.HTML()
            self.costs = gr.HTML()
            code = {"language": "python", "interactive": False, "wrap_lines": True, "show_line_numbers": False}
            self.code = gr.Code(label="Load this size", lines=3, buttons=["copy"], **code)
            self._events(blocks)
        self.blocks = blocks

    def _choices(self, bundle: ShownBundle) -> None:
        gr, names = self.gr, [(one.title, name) for name, one in self.page.bundles.items()]
        self.bundle = gr.Radio(names, value=bundle.name, label="Bundle", visible=len(names) > 1)
        depth, stages, width, components, budgets = self._ranges(bundle)
        with gr.Tab("By size"):
            self.depth = gr.Slider(**depth, minimum=1, step=1, label="Depth: number of layers")
            self.stages = gr.Radio(**stages, label="Depth: number of layers of each stage")
            self.width = gr.Radio(**width, label="Width ratio")
            self.components = gr.Slider(**components, minimum=1, step=1, label="Components: what is downloaded")
        with gr.Tab("By budget"):
            self.budget = gr.Radio(**budgets, label="At most a share of the largest measured size's")
            self.percent = gr.Slider(5, 100, value=50, step=5, label="Share in percent")
            self.choose = gr.Button("Take the best measured size within it", variant="primary")
            self.why = gr.HTML()

    def _pictures(self) -> None:
        gr, found = self.gr, list(self.page.samples)
        self.picture = gr.State(0 if found else None)
        self.file = gr.File(label="Drop a picture here", height=120)
        shown = {"label": "Samples", "columns": 4, "allow_preview": False, "buttons": [], "elem_classes": "samples"}
        self.gallery = gr.Gallery(found, **shown, interactive=False, visible=bool(found))

    @staticmethod
    def _ranges(bundle: ShownBundle) -> tuple[dict, dict, dict, dict, dict]:
        """What may be chosen of a bundle, and what is chosen; the depth on a slider, or where stages have one each
        among those that are trained. A slider has two places at least; one without a choice is hidden."""
        size, joined, most = bundle.first, bundle.joined_depths, bundle.config.reference_components
        deepest = 1 if joined else max(bundle.config.reference_depth, *bundle.config.trained_depths)
        depth = {"maximum": max(deepest, 2), "value": 1 if joined else size.depth, "visible": deepest > 1}
        stages = {"choices": joined, "value": size.depth if joined else None, "visible": len(joined) > 1}
        components = {"maximum": max(most, 2), "value": size.num_components, "visible": most > 1}
        width = {"choices": bundle.widths, "value": str(size.width_ratio)}
        budgets = {"choices": [(BUDGET_WORDS[name], name) for name in BUDGETS], "value": "max_macs"}
        return depth, stages, width, components, budgets

    def _events(self, blocks: Any) -> None:
        gr, size = self.gr, [self.depth, self.stages, self.width, self.components]
        quiet = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": VISITORS}
        shown = {"fn": self._show, "inputs": [self.bundle, *size, self.picture]}
        shown |= {"outputs": [self.facts, self.answers, self.costs, self.code], **quiet}
        changed = [one.change for one in (*size, self.picture)]
        gr.on([blocks.load, *changed], trigger_mode="always_last", **shown)
        self.bundle.change(self._take_bundle, self.bundle, [*size, self.why], **quiet).then(**shown)
        asked = [self.bundle, self.budget, self.percent]
        self.choose.click(self._take_budget, asked, [*size, self.why], **quiet)
        gr.on([self.file.upload, self.file.clear], lambda path: path, self.file, self.picture, **quiet)
        self.gallery.select(_picked(gr), None, self.picture, **quiet)

    def _show(self, name: str, depth: float, stages: str | None, *others: Any) -> tuple:
        return self.page.show(name, stages or depth, *others)

    def _take_bundle(self, name: str) -> tuple:
        depth, stages, width, components, _ = self._ranges(self.page.bundles[name])
        radios = [self.gr.Radio(**stages), self.gr.Radio(**width)]
        return self.gr.Slider(**depth), *radios, self.gr.Slider(**components), ""

    def _take_budget(self, name: str, budget: str, percent: float) -> tuple:
        size, why = self.page.within(name, budget, percent)
        if size is None:
            return *[self.gr.skip()] * 4, views.block(views.sentence(why))
        depth = (1, size.depth) if self.page.bundles[name].joined_depths else (size.depth, None)
        return *depth, str(size.width_ratio), size.num_components, views.block(views.paragraph(why))


def _picked(gr: Any) -> Callable:
    """The place of the sample that is selected; Gradio finds out by the annotation what to pass."""

    def pick(event: gr.SelectData) -> int:
        return event.index

    return pick
