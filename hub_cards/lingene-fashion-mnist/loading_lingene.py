"""One size out of a bundle, and a bundle out of a model: from_pretrained, save_pretrained, push_to_hub.

Without the constraint the weights are recomposed once and handed to transformers' own loading of a stock ViT, which
brings everything stock loading offers; with it the components are handed over the same way.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from transformers import PretrainedConfig
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, logging
from transformers.utils.hub import cached_file


try:
    from transformers.core_model_loading import revert_weight_conversion
except ImportError:  # a version that saves its modules' own names
    revert_weight_conversion = None

from .beside_lingene import COMMIT, NobodyKnows
from .budget_lingene import BUDGETS, choose_size
from .bundle_lingene import FINAL_NORM, HUB_KWARGS, Bundle
from .configuration_base_lingene import BUNDLE_TYPES, SIZE_FIELDS, BundleConfig, Size
from .families_lingene import FAMILIES, class_name, stock_class
from .identity_lingene import settings_of
from .reading_lingene import read_json, shown
from .saving_lingene import ensure_repo, push_bundle, write_bundle
from .translating_lingene import stock_weights, taken_apart


logger = logging.get_logger(__name__)

# What Auto classes pass on and stock loading of weights in memory does not take.
AUTO_KWARGS = ("trust_remote_code", "_from_auto", "code_revision", "_commit_hash", "adapter_kwargs", "use_safetensors")
# What may be misspelt: `check_spelling` knows them by what they look like.
OWN_KEYWORDS = (
    *SIZE_FIELDS,
    "constrained",
    "allow_untrained",
    *BUDGETS,
    "latency_device",
    "verify",
    "num_hidden_layers",
)
PUSH_KWARGS = ("commit_message", "commit_description", "private", "token", "revision", "create_pr")


class BundleMixin:
    """Loading and saving for a `PreTrainedModel` whose weights are a bundle."""

    has_head: ClassVar[bool]
    auto_map: ClassVar[dict[str, str]]  # for `trust_remote_code`: Auto class -> module and class that travel along
    write_card: ClassVar[Callable[[Path, str, str | None, Any], None] | None] = None  # set by the installed package
    kept_files: Mapping[str, bytes | None] = MappingProxyType({})  # of the bundle that this model was loaded from
    ask_again: Callable[[], Mapping[str, bytes | None]] | None = None  # where the Hub could not say what these are

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args,
        config: BundleConfig | None = None,
        depth: int | None = None,
        width_ratio: float | str | None = None,
        num_components: int | None = None,
        constrained: bool = False,
        allow_untrained: bool = False,
        max_params: float | None = None,
        max_macs: float | None = None,
        max_latency_ms: float | None = None,
        latency_device: str | None = None,
        verify: bool = False,
        **kwargs,
    ):
        """One size of a bundle, as a stock model of its family or, with `constrained`, as components.

        Args:
            pretrained_model_name_or_path: a bundle, by folder or by name on the Hub.
            depth, width_ratio, num_components: the size; each default is all that is stored.
            constrained: keep the components as parameters; the result saves as a (smaller) bundle.
            allow_untrained: accept a width or, without a warning, a depth or a number of components that was never
                trained: an initialisation.
            max_params, max_macs, max_latency_ms: instead of a size, take the cheapest measured one within the budget
                (parameters; multiply-accumulates of one image; milliseconds) that one standard error does not tell
                from the best.
            latency_device: whose latencies `max_latency_ms` bounds, by name; default this machine's.
            verify: compare the files that are read with the hashes that were taken when they were saved.
            dtype: of the weights in memory; default at least float32, also where half of it is stored: what is trained
                in float16 soon is not a number. "auto" takes the dtype stored.
            kwargs: anything else stock loading takes: device_map, attn_implementation, num_labels,
                quantization_config, output_loading_info, revision, token, cache_dir, local_files_only, ...

        Returns:
            The family's classifier, for a ViT `ViTForImageClassification`, or this class; from `LinGeneModel` the
            family's encoder, for a ViT `ViTModel` without pooler.

        Raises:
            ValueError: an argument that cannot be met, named with the way out; a damaged or contradictory bundle.
            OSError: a bundle or file that is not there, as transformers raises it.
        """
        if pretrained_model_name_or_path is None:  # weights in memory, as stock: config= and state_dict=
            return super().from_pretrained(None, *model_args, config=config, **kwargs)
        if torch.empty(0).is_meta:
            raise RuntimeError(
                "You are using `from_pretrained` with a meta device context manager or default device: weights cannot "
                "be recomposed there. Use device_map='meta' for an empty model, or leave the context."
            )
        if depth is not None and kwargs.get("num_hidden_layers") is not None:
            raise ValueError("`depth` and `num_hidden_layers` name the same thing; give one of them.")
        name, hub = str(pretrained_model_name_or_path), {key: kwargs.pop(key) for key in HUB_KWARGS if key in kwargs}
        kwargs = {key: value for key, value in kwargs.items() if key not in AUTO_KWARGS}
        check_sources(cls.config_class.model_type, name, config, kwargs)
        hub = pinned(name, hub, cls.config_class.model_type)
        old_name = kwargs.pop("torch_dtype", None)
        dtype = kwargs.pop("dtype", None) or old_name
        config, kwargs = cls._read_config(name, config, hub, kwargs)
        if cls.has_head:
            class_name(config.family, "classifier")  # or nothing else needs to be read
        dtype = read_dtype(dtype or config.dtype)  # Auto classes of some versions pass it on in the configuration only
        check_spelling(kwargs)
        check_pooler(config, kwargs)
        check_quantisation(constrained, config, kwargs)
        bundle = Bundle(name, config, hub)
        budget = {"max_params": max_params, "max_macs": max_macs, "max_latency_ms": max_latency_ms}
        budget = {key: value for key, value in budget.items() if value is not None}
        size = cls._read_size(bundle, (depth, width_ratio, num_components), budget, latency_device)
        if not allow_untrained:
            config.check_trained(size)
            if not budget:
                cls._warn_of_size(bundle, size)
        if cls.has_head and not bundle.has_head:
            logger.warning(f"{name} holds no classifier: its head is new and has to be trained.")
        if verify:
            bundle.verify(bundle.keys(size, cls.has_head))
        load = cls._load_constrained if constrained else cls._load_stock
        result = load(bundle, size, dtype, *model_args, **kwargs)
        model = result[0] if isinstance(result, tuple) else result
        record_origin(model, name, size, config.turned, bundle)
        return result

    @classmethod
    def _load_stock(cls, bundle: Bundle, size: Size, dtype, *model_args, **kwargs):
        outside, layers = bundle.read(size, cls.has_head, dtype)
        kwargs["dtype"] = outside[FINAL_NORM].dtype
        return stock_model(outside, layers, bundle.config.stock_config(size), cls.has_head, **kwargs)

    @classmethod
    def _load_constrained(cls, bundle: Bundle, size: Size, dtype, *model_args, **kwargs):
        weights = bundle.read_components(size, cls.has_head, dtype)
        kwargs |= {"config": bundle.config.sized(size), "state_dict": weights, "dtype": weights[FINAL_NORM].dtype}
        result = super().from_pretrained(None, *model_args, **kwargs)
        model = result[0] if isinstance(result, tuple) else result
        model.kept_files = bundle.kept_files(size)
        if None in model.kept_files.values():
            model.ask_again = partial(bundle.kept_files, size)
        devices = set(getattr(model, "hf_device_map", {}).values())
        if len(devices) > 1 or "disk" in devices:
            raise ValueError(
                f"`device_map` puts a constrained model on {', '.join(map(str, devices))}; its components are "
                "combined in one place: use one device, or load it without constrained=True."
            )
        return result

    @classmethod
    def _read_config(cls, name: str, config, hub: dict, kwargs: dict) -> tuple[BundleConfig, dict]:
        """The bundle's configuration with the keywords that are fields of it applied, and the keywords left."""
        if getattr(config, "model_type", None) == cls.config_class.model_type:
            return config, kwargs
        config, kwargs = cls.config_class.from_pretrained(config or name, return_unused_kwargs=True, **hub, **kwargs)
        return config, {key: value for key, value in kwargs.items() if key not in HUB_KWARGS}

    @classmethod
    def _read_size(cls, bundle: Bundle, asked: tuple, budget: dict, latency_device: str | None = None) -> Size:
        config = bundle.config
        if latency_device is not None and "max_latency_ms" not in budget:
            raise ValueError("`latency_device` says whose latencies `max_latency_ms` bounds; give that as well.")
        if budget:
            stored = bundle.stored_size()  # Auto classes have written what was asked into the configuration
            given = [f for f, value in zip(SIZE_FIELDS, asked) if value is not None or getattr(config, f) != stored[f]]
            if config.image_size != bundle.stored.image_size:
                given.append("image_size")  # sizes were measured on images of the stored one
            if given:
                raise ValueError(f"`{next(iter(budget))}` chooses the size; do not give `{given[0]}` as well.")
            size, why = choose_size(bundle.measured(), config, budget, latency_device)
            logger.warning(f"{bundle.name}: {why}")
            return size
        return config.size(*asked)

    @staticmethod
    def _warn_of_size(bundle: Bundle, size: Size) -> None:
        """Of a depth, and of a number of components, that was neither trained nor measured."""
        for field, known in bundle.config.untrained(size).items():
            asked = getattr(size, field)
            try:
                if asked in {row[field] for row in bundle.measured()}:
                    continue
                said = f"was neither trained ({known}) nor measured"
            except NobodyKnows:
                said = f"was not trained ({known}), nor is it known here whether it was measured"
            name = {"depth": "Depth", "num_components": "Number of components"}[field]
            logger.warning(f"{name} {asked} of {bundle.name} {said}: measure this model before relying on it.")

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ):
        """Write this model as a bundle of its size, atomically: one file per component, their index, config, code,
        and of the bundle that it was loaded from what brings turned channels back, and its preprocessing where the
        folder has none.

        Args:
            save_directory: new, empty, or a folder to update; other files in it are left alone.
            is_main_process: only the main process writes.
            state_dict: the full state dict where the model's own is sharded.
            push_to_hub: push to `repo_id` (default: the folder's name) afterwards.
            kwargs: for `push_to_hub`; others of transformers, such as `max_shard_size`, are of no effect: files follow
                the components.
        """
        if getattr(self, "_hf_peft_config_loaded", False) or getattr(self, "hf_quantizer", None) is not None:
            raise ValueError("A model with adapters or quantised weights is no bundle; save a materialised one.")
        if os.path.isfile(save_directory):
            raise ValueError(f"`save_directory` must be a folder, and {save_directory} is a file.")
        if is_main_process:
            self.config.dtype = str(self.dtype).removeprefix("torch.")
            self.config.architectures = [type(self).__name__]
            tensors = self.state_dict() if state_dict is None else state_dict
            if self.ask_again is not None and None in self.kept_files.values():
                self.kept_files = self.ask_again()
            kept = {name: content for name, content in self.kept_files.items() if content is not None}
            if os.path.isfile(os.path.join(save_directory, IMAGE_PROCESSOR_NAME)):  # perhaps another one
                kept.pop(IMAGE_PROCESSOR_NAME, None)
            write_bundle(save_directory, tensors, settings_of(self.config), partial(self._write_rest, kept=kept))
        if push_to_hub:
            repo_id = kwargs.get("repo_id", os.path.basename(os.path.abspath(save_directory)))
            self.push_to_hub(repo_id, **{key: kwargs[key] for key in PUSH_KWARGS if key in kwargs})

    def _write_rest(self, folder, weights_id: str, kept: Mapping[str, bytes]):
        custom_object_save(self, folder, config=self.config)
        self.config.auto_map, self.config.weights_id = dict(self.auto_map), weights_id
        self.config.save_pretrained(folder)
        for name, content in kept.items():
            (folder / name).write_bytes(content)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = None,
        tags: list[str] | None = None,
    ):
        """Push this model as a bundle of its size, with our card; in one commit, old component files removed.

        Arguments as in transformers, but for `max_shard_size` and `tags`, which are of no effect: files follow the
        components, and tags stand in the card.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "bundle"
            self.save_pretrained(folder)
            repo_id = ensure_repo(repo_id, private, token)
            if type(self).write_card is not None:
                type(self).write_card(folder, repo_id, revision, token)
            return push_bundle(
                folder,
                repo_id,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )


def check_spelling(keywords: Iterable[str]) -> None:
    """Refuse what is one of our keywords misspelt: a stock class would say that it knows no such argument."""
    plain = {name.replace("_", ""): name for name in OWN_KEYWORDS}
    for keyword in keywords:
        close = get_close_matches(keyword.lower().replace("_", ""), plain, n=1, cutoff=0.85)
        if close:
            raise ValueError(f"`{keyword}` is not a keyword of from_pretrained; did you mean `{plain[close[0]]}`?")


def check_sources(expected: str, name: str, config: Any, kwargs: Mapping) -> None:
    """Refuse weights or a configuration of the caller's own, which the bundle's would take the place of.

    Args:
        expected: the `model_type` of the bundles that the class loads.
        config: a configuration, the place of one, or None.
    """
    if kwargs.get("state_dict") is not None:
        raise ValueError(
            f"`state_dict` would take the place of the weights of {name}: load the bundle without it, then use "
            "`load_state_dict`; or give `config` and `state_dict` and None in place of a name."
        )
    if isinstance(config, PretrainedConfig) and config.model_type != expected:
        raise ValueError(
            f"`config` must be of a bundle, with the model_type {expected}, and this {type(config).__name__} is of "
            f"{config.model_type}: leave it out, and choose sizes by `depth`, `width_ratio`, `num_components`."
        )


def check_pooler(config: BundleConfig, kwargs: Mapping) -> None:
    """Refuse a pooler that no bundle of a family has: it would be left out, or new, without a word."""
    if kwargs.get("add_pooling_layer") and not config.stands_for.pools:
        raise ValueError(
            f"`add_pooling_layer`: a bundle of the family {config.family} holds no pooler; leave it out, and add one "
            "to the model that is loaded."
        )


def check_quantisation(constrained: bool, config: BundleConfig, kwargs: dict) -> None:
    """Refuse what would quantise components: they are read, not called, so that it crashes or quantises nothing."""
    asked = kwargs.get("quantization_config") or getattr(config, "quantization_config", None)
    if constrained and (asked or kwargs.get("load_in_8bit") or kwargs.get("load_in_4bit")):
        raise ValueError(
            "`quantization_config` on a constrained model is refused: its components are combined, not called. "
            "Quantise a materialised size: leave out constrained=True."
        )


def read_dtype(dtype: torch.dtype | str | None) -> torch.dtype | str | None:
    """A dtype by itself or by name, "auto" or None.

    Raises:
        ValueError: no floating dtype.
    """
    if dtype is None or dtype == "auto":
        return dtype
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"`dtype` must be a floating dtype such as float32 or bfloat16, or 'auto'; got {dtype!r}.")
    return found


def pinned(name: str, hub: dict, expected: str) -> dict:
    """`hub` with the commit that its revision stands for now: a push in the middle must not mix two bundles.

    Args:
        expected: the `model_type` of the bundles that the class loads.

    Raises:
        OSError: nothing is there, or no config.json, without which transformers would go on with its defaults.
        ValueError: another kind of model.
    """
    path = cached_file(name, CONFIG_NAME, **hub)
    if path is None:
        raise OSError(f"{name} has no {CONFIG_NAME}.")
    model_type = read_json(path, name).get("model_type")
    if model_type != expected and model_type in BUNDLE_TYPES:
        raise ValueError(
            f"{name} is a bundle of another kind of network, {model_type}, and this class loads {expected}: use "
            "AutoModelForImageClassification or AutoModel, which find the class."
        )
    if model_type != expected:
        raise ValueError(
            f"{name} is a {shown(model_type)} model by its `{CONFIG_NAME}`, not a bundle of shared components."
        )
    commit = re.search(rf"snapshots/({COMMIT.pattern})/", Path(path).as_posix())
    return {**hub, "revision": commit[1]} if commit and not os.path.isdir(name) else hub


def stock_model(
    outside: dict, layers: dict[str, list], config: PretrainedConfig, head: bool, backbone: bool = False, **kwargs
):
    """A stock model of a family from recomposed weights, through transformers' own loading with all it offers.

    Args:
        outside: the tensors outside the blocks, by key of the bundle.
        layers: per block tensor the list of its layers' weights.
        config: of the sized model, the family's own.
        head: the family's classifier; without, its encoder, for a ViT with no pooler.
        backbone: its backbone instead.
        kwargs: for stock `from_pretrained`.
    """
    family, kind = config.model_type, "backbone" if backbone else "classifier" if head else "encoder"
    weights = stock_weights(family, outside, layers, head)
    if kind == "encoder":
        kwargs |= FAMILIES[family].options
    result = stock_class(family, kind).from_pretrained(None, config=config, state_dict=weights, **kwargs)
    (result[0] if isinstance(result, tuple) else result).register_load_state_dict_pre_hook(take_saved_names)
    return result


def record_origin(model: torch.nn.Module, name: str, size: Size, turned: bool, bundle: Bundle | None = None) -> None:
    """Say where a model comes from without giving it a name that loads other weights.

    PEFT, the Trainer's card and a reload by `name_or_path` take that name for the very weights: the bundle's leads to
    its full size or, with a stock class, to random layers. A name with the size in it loads nothing, and the error
    shows it; the configuration's, which gets into cards, is empty. A materialised model's origin is in its
    configuration, and in the config.json that is saved from it.

    Args:
        name: of the bundle; empty for one in memory.
        turned: whether the bundle's channels are not those of its source.
        bundle: where it was read from.
    """
    config, commit = model.config, bundle.hub.get("revision") if bundle is not None else None
    commit = commit if commit and COMMIT.fullmatch(commit) else None
    model.source_size = size
    if config.model_type in BUNDLE_TYPES and size == config.size(config.reference_depth, 1):
        model.name_or_path = config.name_or_path = name
        return
    model.name_or_path = f"{name or 'a bundle in memory'}{f'@{commit[:12]}' if commit else ''} ({size})"
    config.name_or_path = ""
    if config.model_type not in BUNDLE_TYPES:
        shown = os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name or None  # no private paths
        asked = {"depth": size.depth, "width_ratio": str(size.width_ratio), "num_components": size.num_components}
        weights_id = bundle.weights_id if bundle is not None else None
        config.materialised_from = {"bundle": shown, "commit": commit, "weights_id": weights_id, **asked}
        if turned:  # what brings them back is no part of what a stock class saves
            config.materialised_from["turned"] = True


def take_saved_names(module, state_dict: dict, prefix: str, *_) -> None:
    """Let `load_state_dict` of a stock ViT take the names that its own `save_pretrained` writes.

    transformers 5 saves a ViT under its long-standing names, and its Trainer loads a best checkpoint, or one to resume
    from, by the raw names with strict=False: only embeddings and head would come back (transformers issue 43701).
    """
    own = module.state_dict()
    if revert_weight_conversion is None or prefix or state_dict.keys() <= own.keys():
        return
    for name in [name for name in state_dict if name not in own]:  # parts of gated MLPs, which are one on disk
        parts = taken_apart(module.config.model_type, {name: state_dict[name]})
        if parts.keys() <= own.keys():
            del state_dict[name]
            state_dict.update(parts)
    keys = {id(tensor): key for key, tensor in own.items()}
    for name, tensor in revert_weight_conversion(module, dict(own)).items():
        if name in state_dict and id(tensor) in keys:
            state_dict[keys[id(tensor)]] = state_dict.pop(name)
