"""A bundle on disk or on the Hub: its files, and reading one size from them.

    config.json  shared.safetensors  component-00.safetensors ...  model.safetensors.index.json  sizes.json

Only the files that a size needs are downloaded and opened, and of them only the slices. Layers are recomposed one
kind of tensor at a time, in blocks that stay in the cache, and each file is unmapped before the next kind, so that
they are never in memory together.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from math import isfinite, prod
from pathlib import Path

import numpy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_INDEX_NAME, logging
from transformers.utils.hub import cached_file, cached_files

from .beside_lingene import NobodyKnows, file_beside
from .budget_lingene import check_row
from .configuration_base_lingene import SIZE_FIELDS, BundleConfig, Size
from .identity_lingene import WEIGHT_FILE, check_keywords, check_settings, file_sha256, weights_id_of
from .reading_lingene import OBJECT, TEXT, check_fields, integer, items, optional, read_json, shown
from .recompose_lingene import channels_kept, is_gain, kept
from .vit_lingene import interpolated_positions


logger = logging.get_logger(__name__)

SHARED_FILE = "shared.safetensors"
SIZES_FILE = "sizes.json"
READOUT_FILE = "readout.safetensors"  # of a bundle whose channels were turned: its tokens in those of its source
FETCH = "fetch it or save it again."
POSITIONS = "embeddings.position_embeddings"
FINAL_NORM = "layernorm.weight"  # of every bundle
CLASSIFIER = "classifier.weight"  # of every bundle with a head
HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
MAPPED_BYTES, BYTES_PER_ELEMENT = 1 << 28, 4  # of files at a time; opening them anew drops their pages
PIECE_ELEMENTS = 1 << 18  # of one component, for one thread to combine
BLOCK_ELEMENTS = 1 << 15  # of one component at a time; no copy or sum of so few is divided among threads


def are_digests(value) -> bool:
    """Whether a JSON value gives a SHA-256 per weight file."""
    named = isinstance(value, dict) and all(map(WEIGHT_FILE.fullmatch, value))
    return named and all(isinstance(digest, str) and len(digest) == 64 for digest in value.values())


DIGESTS = (are_digests, "an object that gives the SHA-256 of every weight file")
MEASURE, SIZES_FIELDS = "delete the file and measure again", {"weights_id": TEXT, "sizes": items(OBJECT)}
INDEX_METADATA = {
    "weights_id": optional(TEXT),
    "total_size": optional(integer(1, 1 << 53)),
    "files": optional(DIGESTS),
    "settings": optional(OBJECT),
}


def component_file(index: int) -> str:
    return f"component-{index:02d}.safetensors"


class Bundle:
    """The files of one bundle, by folder or by name on the Hub.

    Args:
        name: a folder, or a repository on the Hub.
        config: what the bundle holds.
        hub: what `cached_file` takes: revision, token, cache_dir, local_files_only, ...

    Raises:
        ValueError: index and configuration are of different saves, a file is damaged, a tensor is missing, has another
            shape than the configuration says, or is not finite.
        OSError: a file that is not there, as transformers raises it.
    """

    def __init__(self, name: str | os.PathLike, config: BundleConfig, hub: dict | None = None):
        self.name, self.config, self.hub = str(name), config, hub or {}
        self.stored = type(config).from_dict(read_json(cached_file(self.name, CONFIG_NAME, **self.hub), self.name))
        check_keywords(self.name, self.stored, config)
        self.block_shapes, self.shared_shapes = self.stored.component_shapes(), self.stored.shared_shapes()
        self.head_shapes = self.stored.head_shapes()
        self._read_index()
        self._check_keys()

    def _read_index(self) -> None:
        """Sets which file holds what, the identity of the whole, the files' hashes (none in older bundles)."""
        index = read_json(cached_file(self.name, SAFE_WEIGHTS_INDEX_NAME, **self.hub), self.name)
        where = f"`{SAFE_WEIGHTS_INDEX_NAME}` of {self.name}"
        check_fields(index, {"weight_map": OBJECT, "metadata": OBJECT}, where, required=("weight_map", "metadata"))
        for key, file in index["weight_map"].items():
            if not (isinstance(file, str) and WEIGHT_FILE.fullmatch(file)):  # a path may lead anywhere
                raise ValueError(f"`{key}` in {where} must lie in a weight file beside it, got {shown(file)}.")
        metadata = index["metadata"]
        check_fields(metadata, INDEX_METADATA, where)
        self.weight_map, self.weights_id = index["weight_map"], metadata.get("weights_id")
        self.digests, settings = metadata.get("files"), metadata.get("settings")
        self.total_size = metadata.get("total_size")  # bytes of all weights
        if self.stored.weights_id is not None and self.stored.weights_id != self.weights_id:
            raise ValueError(
                f"`weights_id` of {self.name} differs between config.json and {SAFE_WEIGHTS_INDEX_NAME}: a save was "
                "interrupted between the two; save the bundle again, or restore the folder."
            )
        check_settings(self.name, self.stored, settings)
        whole = self.digests is None or set(self.weight_map.values()) == self.digests.keys()
        if not whole or (self.digests is not None and weights_id_of(self.digests, settings) != self.weights_id):
            raise ValueError(f"`weights_id` in {where} is not that of its files and settings; {FETCH}")

    def verify(self, keys: Iterable[str] | None = None) -> dict[str, int]:
        """Compare the files with the hashes that were taken when they were saved; downloads those that are missing.

        Args:
            keys: of the tensors whose files are meant; default all.

        Returns:
            Bytes of every file that was read, by name.

        Raises:
            ValueError: a file that was changed or damaged since, or a bundle that has no hashes.
        """
        if self.weights_id is None:
            raise ValueError(f"{self.name} was saved without hashes and cannot be verified; save it again.")
        if self.digests is None:
            keys = None  # an older bundle has one hash for all of them
        paths = self.locate(self.weight_map if keys is None else keys)
        paths = dict(sorted((self.weight_map[key], path) for key, path in paths.items()))
        digests = {file: file_sha256(path) for file, path in paths.items()}
        if self.digests is None and weights_id_of(digests, None) != self.weights_id:
            raise ValueError(f"`weights_id` of {self.name} is not that of its files; {FETCH}")
        for file, digest in digests.items():
            if self.digests is not None and digest != self.digests[file]:
                raise ValueError(f"`{file}` of {self.name} was changed or damaged after it was saved; {FETCH}")
        return {file: os.path.getsize(path) for file, path in paths.items()}

    def _check_keys(self):
        """The index must list exactly what the configuration promises: nothing may be random, nothing cut off."""
        expected = [*self.shared_shapes, *self._component_keys(self.stored.reference_components)]
        expected += self.head_shapes if any(key in self.weight_map for key in self.head_shapes) else ()
        for key in expected:
            if key not in self.weight_map:
                raise ValueError(
                    f"`{key}` is missing from `{SAFE_WEIGHTS_INDEX_NAME}` of {self.name}; the bundle is incomplete."
                )
        known = set(expected)
        for key in self.weight_map:
            if key not in known:
                raise ValueError(
                    f"`{key}` stands in `{SAFE_WEIGHTS_INDEX_NAME}` of {self.name}, and its configuration knows "
                    "no such tensor; config.json belongs to another bundle."
                )

    @property
    def has_head(self) -> bool:
        return CLASSIFIER in self.weight_map

    def download_bytes(self, num_components: int) -> int:
        """Weights that are fetched from the Hub for so many components: whole files, whatever the depth and width."""

        def numbers(count: int) -> int:
            shared = [*self.shared_shapes.values(), *(self.head_shapes.values() if self.has_head else ())]
            components = (shape for n in range(count) for shape in self.stored.component_shapes(n).values())
            return sum(map(prod, (*shared, *components)))

        whole = numbers(self.stored.reference_components)
        return round(numbers(num_components) * (self.total_size or BYTES_PER_ELEMENT * whole) / whole)

    def stored_size(self) -> dict:
        """The size fields as config.json has them, before any keyword of the caller's."""
        return {field: getattr(self.stored, field) for field in SIZE_FIELDS}

    def measured(self) -> list[dict]:
        """The rows of `sizes.json`, or none where there is no such file.

        Raises:
            ValueError: the file is damaged or belongs to other weights; a `NobodyKnows`: nobody can say whether there
                is one.
        """
        path = file_beside(self.name, SIZES_FILE, **self.hub)
        if path is None:
            return []
        content, where = read_json(path, self.name, MEASURE), f"`{SIZES_FILE}` of {self.name}"
        check_fields(content, SIZES_FIELDS, where, required=SIZES_FIELDS, remedy=MEASURE)
        weights_id, rows = content["weights_id"], content["sizes"]
        for place, row in enumerate(rows):
            check_row(row, self.stored, f"row {place} of {where}", MEASURE)
        if weights_id != self.weights_id:
            raise ValueError(
                f"`{SIZES_FILE}` of {self.name} was measured on other weights (`weights_id` differs); "
                "measure the bundle again, or delete the file."
            )
        return rows

    def kept_files(self, size: Size) -> dict[str, bytes | None]:
        """What goes with a size however it is trained, by file name: its preprocessing, and what brings channels that
        were turned back into its source's. Each where there is such a file; None, and a warning, where nobody can say
        whether there is one."""
        held, turned = {}, self.stored.turned or not self.has_head  # encoders from before the field may be, too
        for name in (IMAGE_PROCESSOR_NAME, READOUT_FILE) if turned else (IMAGE_PROCESSOR_NAME,):
            try:
                path = file_beside(self.name, name, **self.hub)
            except NobodyKnows as error:
                logger.warning(f"{error} Until then this model is saved without it.")
                held[name] = None
                continue
            if path is not None:
                held[name] = Path(path).read_bytes()
        if size.width_ratio < 1 and held.get(READOUT_FILE) is not None:
            held[READOUT_FILE] = self._narrowed_readout(held[READOUT_FILE], size)
        return held

    def _narrowed_readout(self, content: bytes, size: Size) -> bytes:
        """The columns of the channels that a size has."""
        try:
            held = load(content)
            weight = held["weight"]
            width = int(weight.shape[1] * size.width_ratio)
            held["weight"] = weight[:, channels_kept(weight.shape[1], width, size.trailing)].contiguous()
        except (SafetensorError, KeyError, IndexError) as error:
            raise ValueError(f"`{READOUT_FILE}` of {self.name} is damaged ({error}); convert again.") from None
        return save(held)

    def locate(self, keys: Iterable[str]) -> dict[str, str]:
        """Local path of the file that holds each key; downloads the files that are missing, and no others."""
        files = {key: self.weight_map[key] for key in keys}
        wanted = sorted(set(files.values()))
        paths = dict(zip(wanted, cached_files(self.name, wanted, **self.hub)))
        return {key: paths[file] for key, file in files.items()}

    def shared_keys(self, head: bool) -> list[str]:
        return [*self.shared_shapes, *(self.head_shapes if head and self.has_head else ())]

    def keys(self, size: Size, head: bool) -> list[str]:
        """The tensors that a size is read from."""
        return [*self.shared_keys(head), *self._component_keys(size.num_components)]

    def read(self, size: Size, head: bool, dtype: torch.dtype | str | None = None) -> tuple[dict, dict]:
        """One size, recomposed (LinDec, Eq. 1).

        Args:
            size: from `config.size(...)`.
            head: with the classifier.
            dtype: of the result; "auto" as stored; default as stored, but at least float32.

        Returns:
            The tensors outside the blocks by key, and per block tensor (`attention.query.weight`, ...) the list of its
            `depth` layers' weights, each with its own memory.
        """
        shared, layers = self.shared_keys(head), {}
        paths = self.locate(self.keys(size, head))
        with opened(self.name, paths, shared) as slices:
            outside = {key: self._take(key, tensor, size) for key, tensor in slices.items()}
            outside = {key: tensor.to(in_memory(tensor, dtype), copy=True) for key, tensor in outside.items()}
        self._fit_positions(outside)
        for names in self._mapped_together(size):
            keys = [key for name in names for key in self._keys_of(name, size)]
            with opened(self.name, paths, keys) as slices:
                layers |= self._combined(names, slices, size, dtype)
        return outside, layers

    def _combined(self, names: list[str], slices: dict, size: Size, dtype) -> dict[str, list]:
        """Some block tensors of every layer."""
        layers, pieces = {}, []
        tables = {stack: self.config.coefficients(size, stack) for stack in self.config.stacks}
        for name in names:
            parts = [self._take(key, slices[key], size, check=False) for key in self._keys_of(name, size)]
            table = tables[self.config.stack_of(name)] * self.config.branch_scale(name, size)
            layers[name], own = combining(parts, table, in_memory(parts[0], dtype))
            pieces += [(name, piece) for piece in own]
        for name, finite in in_threads(pieces):
            if not finite:
                raise ValueError(f"`{name}` of a component in {self.name} holds values that are not finite.")
        for name in names:
            if is_gain(name) and self.config.gain_offset:
                for gain in layers[name]:
                    gain += self.config.gain_offset
        return layers

    def _component_keys(self, count: int) -> list[str]:
        return [f"components.{n}.{name}" for n in range(count) for name in self.stored.component_shapes(n)]

    def _keys_of(self, name: str, size: Size) -> list[str]:
        """Of one block tensor, component by component."""
        return [f"components.{n}.{name}" for n in range(self.config.component_count(size.num_components, name))]

    def _mapped_together(self, size: Size) -> list[list[str]]:
        """Block tensors in the order of reading, large ones first, in groups that map a bounded amount: low peak."""
        shapes, groups, mapped = self.block_shapes, [[]], 0
        for name in sorted(shapes, key=lambda name: -prod(shapes[name])):
            # Sliced rows touch their pages whole, so that the width counts once.
            extent = int(prod(shapes[name]) * size.width_ratio) * size.num_components * BYTES_PER_ELEMENT
            if mapped + extent > MAPPED_BYTES and groups[-1]:
                groups.append([])
                mapped = 0
            groups[-1].append(name)
            mapped += extent
        return groups

    def read_components(
        self, size: Size, head: bool, dtype: torch.dtype | str | None = None
    ) -> dict[str, torch.Tensor]:
        """One size as components: the state dict of the constrained model, sliced and truncated; `dtype` as above."""
        keys = self.keys(size, head)
        with opened(self.name, self.locate(keys), keys) as slices:
            tensors = {key: self._take(key, tensor, size) for key, tensor in slices.items()}
        narrow = size.width_ratio < 1  # a slice that stays a view cannot be saved
        tensors = {key: tensor.to(in_memory(tensor, dtype), copy=narrow) for key, tensor in tensors.items()}
        self._fit_positions(tensors)
        return tensors

    def _fit_positions(self, tensors: dict[str, torch.Tensor]) -> None:
        """Interpolate the positions to the image size that is asked for, where that is not the stored one."""
        grid, target = self.stored.patch_grid, self.config.patch_grid
        if POSITIONS in tensors and grid != target:
            antialias = self.config.stands_for.antialias
            tensors[POSITIONS] = interpolated_positions(tensors[POSITIONS], grid, target, antialias)

    def _take(self, key: str, tensor, size: Size, check: bool = True) -> torch.Tensor:
        """The part of one stored tensor that a width keeps, a view of the mapped file."""
        expected = self._stored_shape(key)
        shape = tuple(tensor.get_shape())
        if shape != expected:
            raise ValueError(
                f"`{key}` of {self.name} has shape {shape}, and config.json says {expected}; "
                "the weights belong to another configuration."
            )
        part = tensor[kept(key, shape, size.width_ratio, size.trailing)]
        if check and not isfinite(part.sum(dtype=torch.float32)):
            raise ValueError(f"`{key}` of {self.name} holds values that are not finite.")
        return part

    def _stored_shape(self, key: str) -> tuple[int, ...]:
        if key.startswith("components."):
            return self.block_shapes[key.split(".", 2)[2]]
        return self.head_shapes[key] if key in self.head_shapes else self.shared_shapes[key]


def in_memory(stored: torch.Tensor, dtype: torch.dtype | str | None) -> torch.dtype:
    """What a stored tensor is loaded as: the dtype asked for; "auto" its own; by default its own, at least float32."""
    if dtype is None:
        return torch.promote_types(stored.dtype, torch.float32)
    return stored.dtype if dtype == "auto" else dtype


@contextmanager
def opened(name: str, paths: dict[str, str], keys: Sequence[str]) -> Iterator[dict]:
    """Lazy slices of some tensors; their files are mapped inside the block only.

    Raises:
        ValueError: a file that is truncated or damaged, or lacks a tensor that the index promises.
    """
    with ExitStack() as stack:
        files, slices = {}, {}
        for key in keys:
            path = paths[key]
            try:
                if path not in files:
                    files[path] = stack.enter_context(safe_open(path, framework="pt"))
                slices[key] = files[path].get_slice(key)
            except SafetensorError as error:
                raise ValueError(
                    f"`{key}` cannot be read from {os.path.basename(path)} of {name}: the file is truncated or "
                    f"damaged ({error}); fetch or save it again."
                ) from None
        yield slices


def combining(
    parts: Sequence[torch.Tensor], table: torch.Tensor, dtype: torch.dtype
) -> tuple[list[torch.Tensor], list[Callable[[], bool]]]:
    """`recompose` for tensors that lie in files: the same sums, to be done piece by piece, one tensor per layer.

    Args:
        parts: per component one tensor of the same shape, views of mapped files.
        table: (l, n) float64.
        dtype: of the result.

    Returns:
        Per layer one tensor of that shape, empty; and calls that each fill some rows and say whether what they put
        into the first layer is finite.
    """
    first, depth = parts[0], len(table)
    # numpy asks for huge pages, which halves the time that the system takes to hand out this much memory; and each of
    # its rows becomes a tensor that knows nothing of the others, so that it is saved and copied alone (the memory goes
    # when the last of them goes).
    memory = numpy.empty((depth, first.numel() * dtype.itemsize), dtype=numpy.uint8)
    whole = torch.from_numpy(memory).view(dtype)
    layers = [torch.from_numpy(row).view(dtype).view(first.shape) for row in memory]
    step = max(1, PIECE_ELEMENTS // prod(first.shape[1:]))
    starts = range(0, first.shape[0], step)
    return layers, [partial(combine, parts, table, whole, start, start + step) for start in starts]


def combine(parts: Sequence[torch.Tensor], table: torch.Tensor, whole: torch.Tensor, start: int, stop: int) -> bool:
    """Fill some rows of every layer, in blocks that stay in the cache and are copied by one thread.

    Threads that share every operation wait for each other thousands of times in a load, and on a busy machine each
    time for one that is not running: with one busy process beside it, a load took seconds.
    """
    shape, wide = parts[0].shape, torch.promote_types(parts[0].dtype, torch.float32)
    table, step = table.to(wide), max(1, BLOCK_ELEMENTS // prod(shape[1:]))
    source, finite = torch.empty(len(parts), step, *shape[1:], dtype=wide), True
    targets = whole.view(len(table), *shape)
    for first in range(start, min(stop, shape[0]), step):
        rows = slice(first, min(first + step, stop, shape[0]))
        columns, sums = source[:, : rows.stop - first], targets[:, rows].flatten(1)
        torch._foreach_copy_(list(columns), [part[rows] for part in parts])
        if whole.dtype == wide:
            torch.mm(table, columns.flatten(1), out=sums)
        else:
            torch._foreach_copy_(list(sums), list(torch.mm(table, columns.flatten(1))))
        finite = finite and isfinite(sums[0].sum(dtype=wide))
    return finite


def in_threads(calls: Sequence[tuple[str, Callable]]) -> list[tuple]:
    """The results of named calls, made by as many threads as torch computes with; with their names, in order."""
    threads = min(torch.get_num_threads(), len(calls))
    if threads == 1:
        return [(name, call()) for name, call in calls]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda named: (named[0], named[1]()), calls))
