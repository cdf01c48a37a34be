"""What a teacher says of every picture, asked once and kept on disk, for pictures that no augmentation varies.

OUT/teacher/train.f32, held_out.f32     float32 (pictures, *shape), read where they lie
OUT/teacher/train.partial, .asked       while the teacher is asked: answers, and a byte per picture, 1 where it was
OUT/teacher/cache.json                  of which run; removed with the folder when the run is done

Notation: b batch; shape of one answer, (classes,) or (t, D), tokens and channels of the teacher.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from accelerate import Accelerator

from ..folders import write_json
from ..images.augmentation import Augmentation
from ..images.loaders import Layout, MemoryImages, PictureImages
from ..measuring.tables import bytes_shown
from ..progress import progress_bar
from .checkpoints import check_identity
from .processes import decided_on_main


CACHE, CACHE_FILE = "teacher", "cache.json"
REMEMBERED_BYTES = 1 << 30
GIGABYTE = 10**9


def check_cache(out: Path, images: int, shape: tuple[int, ...], cache_gb: float, augmentation: Augmentation) -> None:
    """Refuse, before any picture is read, a cache that cannot be.

    Args:
        out: folder of the run.
        images: number of pictures, the held-out ones included.
        shape: of one answer.
        cache_gb: most that it may take, gigabytes.

    Raises:
        ValueError: pictures that vary, or no room.
    """
    if augmentation.varies:
        raise ValueError(
            "`cache_teacher` needs images that are the same in every epoch; use it with the augmentation `none`."
        )
    needed = 4 * images * math.prod(shape)
    said = f"the teacher's answers to {images} pictures take {bytes_shown(needed)}"
    if needed > cache_gb * GIGABYTE:
        raise ValueError(f"`cache_gb` {cache_gb:g} is too little: {said}; raise it, or leave `cache_teacher` out.")
    files = [file.stat() for kind in ("f32", "partial") for file in (out / CACHE).glob(f"*.{kind}")]
    there = sum(512 * file.st_blocks for file in files)  # what is yet to be written takes no room
    above = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if shutil.disk_usage(above).free < needed - there:
        raise ValueError(f"`cache_teacher` needs room: {said}, and `out` {out} has less; leave it out.")


class CachedTeacher:
    """Gives what a teacher said of a source's pictures.

    Args:
        teacher: batch -> (b, *shape); asked once for every picture, of which every process asks for its share.
        images: whose `index` the batches carry.
        path: of the file; one that is there is read, and one that was interrupted goes on.
        shape: of one answer.
        accelerator: of the run, on every process.
        batch_size: of the asking.
    """

    def __init__(
        self,
        teacher: Callable[[dict], torch.Tensor],
        images: MemoryImages | PictureImages,
        path: Path,
        shape: tuple[int, ...],
        accelerator: Accelerator,
        batch_size: int,
    ):
        self.device, whole = images.device, (len(images.images), *shape)
        found = path.is_file()
        accelerator.wait_for_everyone()
        if not found:
            partial, marks = path.with_suffix(".partial"), path.with_suffix(".asked")
            if accelerator.is_main_process and not (partial.is_file() and marks.is_file()):
                numpy.memmap(partial, numpy.float32, "w+", shape=whole).flush()
                numpy.memmap(marks, numpy.uint8, "w+", shape=whole[:1]).flush()
            accelerator.wait_for_everyone()
            filled = numpy.memmap(partial, numpy.float32, "r+", shape=whole)
            asked = numpy.memmap(marks, numpy.uint8, "r+", shape=whole[:1])
            known = set(numpy.flatnonzero(asked).tolist())
            layout = Layout(batch_size, 1, accelerator.num_processes, accelerator.process_index)
            share, shown = len(images.images) // accelerator.num_processes, accelerator.is_main_process
            done = len(known) // accelerator.num_processes
            with progress_bar(total=share, initial=done, desc="asking the teacher", unit="image", shown=shown) as bar:
                for batch in images.in_order(layout, known):
                    places = batch["index"].cpu().numpy()
                    filled[places] = teacher(batch).cpu().numpy()
                    asked[places] = 1  # not before, or an interruption would leave zeros for answers
                    bar.update(len(places))
            filled.flush()
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                partial.rename(path)
                marks.unlink()
            accelerator.wait_for_everyone()
        self.answers = numpy.memmap(path, numpy.float32, "r", shape=whole)

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """(b, *shape) of a batch's pictures."""
        return torch.from_numpy(self.answers[batch["index"].cpu().numpy()]).to(self.device)


class RememberedTeacher:
    """Gives what a teacher said of pictures that stay as they are, in the batches that they came in; it is asked again
    for what does not fit in memory.

    Args:
        teacher: batch -> (b, ...).
        room: bytes of the CPU's memory.
    """

    def __init__(self, teacher: Callable[[dict], torch.Tensor], room: int = REMEMBERED_BYTES):
        self.teacher, self.room = teacher, room
        self.answers: dict[tuple[int, ...], torch.Tensor] = {}  # by the pictures of the batch

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Its answer, where the batch is."""
        pictures = tuple(batch["index"].tolist())
        if pictures not in self.answers:
            answer = self.teacher(batch)
            if answer.nbytes > self.room:
                return answer
            self.room -= answer.nbytes
            self.answers[pictures] = answer.cpu()
        return self.answers[pictures].to(batch["pixel_values"].device)


def open_cache(out: Path, identity: dict, accelerator: Accelerator) -> Path:
    """The folder of a run's cache, empty or as it was left.

    Raises:
        ValueError: it is another run's.
    """
    file = out / CACHE / CACHE_FILE

    def claim() -> None:
        if file.is_file():
            check_identity(out, json.loads(file.read_text(encoding="utf-8")), identity)
        else:
            write_json(file, identity)

    decided_on_main(accelerator, claim)
    return file.parent
