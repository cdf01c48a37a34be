"""What `lingene prune` is asked for, by its flags."""

from dataclasses import dataclass


SEARCHES = ("none", "published", "random")
DENSE = "dense"  # as a teacher
RANGES = {"target_macs": 1, "target_params": 1, "cost_weight": 1e6, "gate_learning_rate": 1e3}
RANGES |= {"mixing_temperature": 1e6}


@dataclass(frozen=True)
class PruneSettings:
    """What is asked for, and how it is found.

    Args:
        data: digits, a folder of images, parquet files, a name on the Hub; searched and tuned on its split `train`,
            measured on `test`, or a fifth held out.
        target_macs: share of the dense network's MACs that the result may have, such as 0.5.
        target_params: or of its parameters.
        search: `none`, from the worth of every part by some images, as much as a few steps on each of them;
            `published`, gates trained with the weights (SPViT) for `search_epochs`, whose steps cost more than those
            of a training; `random`, a control.
        search_epochs: of the search; 0 is as many as of the tuning.
        cost_weight: of the squared difference from the target, in shares of the dense cost; in the paper 25 to 63.
        gate_learning_rate: peak, of the gates.
        mixing_temperature: alpha of the shares that heads have in a convolution; 0 is the published one, 0.01 for a
            ViT and 100 for a Swin.
        calibration_images: of the search `none`.
        teacher: whom search and tuning learn from beside the labels: `dense`, the network itself; another classifier,
            by name; or empty for none.
        tune: train what was chosen.
        compare: with a bundle, train its unpruned size of that cost for as many epochs as search and tuning together,
            and measure it beside the result; takes about as long as both.
        fold: fold BatchNorm into convolutions at the end.
        workers: processes that decode, where the images are not kept in memory.
        validation_share: part of the training images that is held out, where the set has no part of its own.
        validation_seed: draws that part.
        relabel: take class i of the images for output i, of the network and of the teacher, whatever their names are.

    Raises:
        ValueError: none or both of the targets, a number out of its range, an unknown word.
    """

    data: str = ""
    target_macs: float = 0.0
    target_params: float = 0.0
    search: str = "none"
    search_epochs: int = 0
    cost_weight: float = 30.0
    gate_learning_rate: float = 1e-3
    mixing_temperature: float = 0.0
    calibration_images: int = 256
    teacher: str = DENSE
    tune: bool = True
    compare: bool = True
    fold: bool = False
    workers: int = 4
    validation_share: float = 0.1
    validation_seed: int = 0
    relabel: bool = False

    def __post_init__(self):
        for name, high in RANGES.items():
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(f"`{name}` must be from 0 to {high:g}, got {getattr(self, name)!r}.")
        if (self.target_macs > 0) == (self.target_params > 0):
            raise ValueError("`target_macs` or `target_params` says how much is to be left, such as 0.5: give one.")
        for name, low in (("search_epochs", 0), ("calibration_images", 1), ("workers", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"`{name}` must be an integer of at least {low}, got {getattr(self, name)!r}.")
        if self.search not in SEARCHES:
            raise ValueError(f"`search` must be one of {', '.join(SEARCHES)}, got {self.search!r}.")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"`validation_share` must be from 0 to below 1, got {self.validation_share!r}.")

    @property
    def kind(self) -> str:
        return "macs" if self.target_macs else "params"

    @property
    def target(self) -> float:
        return self.target_macs or self.target_params
