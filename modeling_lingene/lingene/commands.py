"""The commands: where each is done, its help, its options, and what to do after it was interrupted."""

from dataclasses import dataclass
from pathlib import Path

from .options import (
    AGAIN,
    BASIS,
    BATCH_SIZE,
    BUNDLE,
    BUNDLE_FOLDER,
    DATA,
    DEVICE,
    IMAGES,
    LICENSE,
    METRIC,
    OUT,
    OUT_FILE,
    QUIET,
    REFERENCE,
    RELABEL,
    REVISION,
    SEED,
    SIZE,
    SPLIT,
    Options,
    arguments,
    depths,
    grid,
    integers,
    made_by,
    option,
    words,
)


@dataclass(frozen=True)
class Command:
    """What one word after `lingene` does.

    Args:
        run: `module:function`, called with the options' values as keywords.
        help: one line.
        options: of its command line.
        resume: what to do after it was interrupted, for its `name` and the `place` that it writes to.
    """

    run: str
    help: str
    options: tuple[Options, ...]
    resume: str = "Nothing was changed."


WORK = "modeling_lingene.commands"
RESUMED = "lingene {name} --resume {place} goes on."
KEPT = ("run.json", "sweep.json")  # in that place: what it goes on by
UNKEPT = "Nothing to go on by was written yet: give the whole command again{flag}."
ANALYSES = (
    "trend: the linear trend of weights over depth, of any stack of equal layers; components: what each "
    "component of a bundle looks at in pictures, alone and with those before it; coefficients: how much of every "
    "component its layers hold; similarity: how alike the layers of a size and of its reference are on pictures"
)
MEASURED_WITH = (SPLIT, METRIC, REFERENCE, RELABEL, BATCH_SIZE, DEVICE)  # of a size, or of a grid

COMMANDS = {
    "quickstart": Command(
        f"{WORK}.training:quickstart",
        "train a small bundle on handwritten digits, measure its sizes",
        (
            option("--out", type=Path, default=Path("lingene-quickstart"), help="folder (default: %(default)s)"),
            SEED,
            option("--epochs", type=int, default=240, help="of the training (default: %(default)s)"),
            QUIET,
        ),
        AGAIN,
    ),
    "decompose": Command(
        f"{WORK}.training:decompose",
        "train a bundle: components, and the sizes of it that were trained measured",
        (
            made_by("modeling_lingene.training.options:add_recipe_options"),
            QUIET,
        ),
        RESUMED,
    ),
    "recipes": Command(
        f"{WORK}.training:recipes",
        "the named runs: what each trains, on what, how long; of one all that is not the default",
        (option("recipe", metavar="RECIPE", nargs="?", help="one of them"),),
    ),
    "prune": Command(
        f"{WORK}.training:prune",
        "prune a ViT or Swin, or a size of a bundle, to a share of its cost: attention into convolution",
        (
            option(
                "model",
                metavar="MODEL",
                nargs="?",
                help="a ViT or Swin with a classifier, or a bundle, by folder or name on the Hub",
            ),
            option("--out", type=Path, help="new or empty folder for the result"),
            made_by("modeling_lingene.pruning.options:add_prune_options"),
            QUIET,
            SIZE,
        ),
        RESUMED,
    ),
    "convert": Command(
        f"{WORK}.making:convert",
        "turn a trained ViT into a bundle, without training",
        (
            option("source", metavar="SOURCE", help="transformers name or folder, or timm:NAME"),
            OUT,
            option("--weights", metavar="FILE", help="of timm:NAME: safetensors or a state dict"),
            option("--prefix", help="of the network's tensors in that file, where it holds several"),
            option(
                "--model-args",
                type=arguments,
                metavar="NAME=VALUE,...",
                help="of timm:NAME, where the file's network has another shape: --model-args "
                "depth=6,embed_dim=192,num_heads=3; of a Swin --model-args 'depths=[2,2,6,2]' and the like",
            ),
            option("--headless", action="store_true", help="leave the classifier out"),
            option("--num-components", type=int, help="default: as many as layers, which loses nothing"),
            option("--calibrate", metavar="DATA", help="unlabelled images for a better fit, and to measure it"),
            option(
                "--images",
                type=int,
                default=512,
                help="of them (default: %(default)s); 128 others judge a fit, of fewer than those a fifth of all",
            ),
            option(
                "--stages",
                type=integers,
                default=(),
                metavar="N,N",
                help="of a Swin to decompose (default: the deepest)",
            ),
            option(
                "--fit",
                help="weights, activations, weighted, kronecker, aligned, matched (default: the last with "
                "--calibrate, else the first)",
            ),
            option("--rounds", type=int, help="of the last three (default: 20, and 10 before matching)"),
            option("--depths", type=integers, default=(), metavar="N,N", help="choose the layers to keep there"),
            option(
                "--sort", action="store_true", help="put what matters first, for widths to come; exact at full width"
            ),
            option("--widths", type=words, default=(), metavar="R,R", help="of --sort (default: every legal width)"),
            DEVICE,
            SEED,
            QUIET,
            BASIS,
        ),
    ),
    "export": Command(
        f"{WORK}.making:export",
        "write one size for transformers, timm, ONNX, ExecuTorch, OpenVINO or as a torch program",
        (
            BUNDLE,
            REVISION,
            option("--to", required=True, help="transformers, timm, onnx, program, executorch, openvino"),
            OUT,
            option(
                "--weights",
                default="float32",
                help="float32; onnx also float16, int8; openvino float16 (default: %(default)s)",
            ),
            option(
                "--data", help="pictures that it is compared on too, as for the other commands; labels are not needed"
            ),
            option("--tolerance", type=float, help="largest difference accepted, as a share of the largest logit"),
            QUIET,
            SIZE,
        ),
    ),
    "materialise": Command(
        f"{WORK}.making:materialise",
        "write one size of a bundle as a plain model folder",
        (
            BUNDLE,
            REVISION,
            OUT,
            SIZE,
        ),
    ),
    "evaluate": Command(
        f"{WORK}.measuring:evaluate",
        "accuracy or another metric, parameters, MACs and latency of one size, or of a model",
        (
            option(
                "model", metavar="MODEL", help="a bundle, a plain ViT, by folder or name on the Hub; or an ONNX folder"
            ),
            DATA,
            *MEASURED_WITH,
            OUT_FILE,
            QUIET,
            SIZE,
        ),
    ),
    "sweep": Command(
        f"{WORK}.measuring:sweep",
        "measure a grid of sizes into sizes.json, with a table and pictures",
        (
            option("bundle", metavar="BUNDLE", nargs="?", help="folder, or name on the Hub with --out"),
            option("--data", help=IMAGES),
            option(
                "--resume",
                type=Path,
                metavar="DIR",
                help="go on with the sweep that was interrupted in DIR, by its own settings",
            ),
            *MEASURED_WITH,
            option("--allow-untrained", action="store_true", help="measure widths that were never trained, too"),
            option("--no-latency", dest="latency", action="store_false", help="do not time one image of each"),
            option("--out", type=Path, help="folder for sizes.json and the pictures (default: the bundle)"),
            QUIET,
            grid("what was trained, and components doubling up to all"),
        ),
        RESUMED,
    ),
    "profile": Command(
        f"{WORK}.measuring:profile",
        "latency and throughput of sizes on this device, into sizes.json",
        (
            BUNDLE,
            DEVICE,
            option("--threads", type=int, help="of the CPU (default: as many as torch uses)"),
            option("--dtype", default="float32", help="float32, bfloat16 or float16 (default: %(default)s)"),
            option("--compile", dest="compiled", action="store_true", help="time the compiled model"),
            option("--batch-size", type=int, default=64, help="for the throughput (default: %(default)s)"),
            OUT_FILE,
            QUIET,
            grid("the measured sizes"),
        ),
    ),
    "info": Command(
        f"{WORK}.measuring:info",
        "what a bundle holds, its legal, trained and measured sizes",
        (
            BUNDLE,
            REVISION,
            OUT_FILE,
        ),
    ),
    "verify": Command(
        f"{WORK}.measuring:verify",
        "compare every weight file with the hash that was taken when it was saved",
        (
            BUNDLE,
            REVISION,
        ),
    ),
    "analyse": Command(
        f"{WORK}.analysis:analyse",
        "explain a model by its weights: how they change over depth",
        (
            option(
                "what",
                choices=("trend", "components", "coefficients", "similarity"),
                help=ANALYSES,
            ),
            option(
                "model",
                metavar="MODEL",
                help="a bundle or another model of transformers, by folder or name on the Hub",
            ),
            OUT,
            option(
                "--data",
                help="of components and similarity: pictures, as for the other commands; labels are not needed",
            ),
            option("--count", type=int, help="of components: how many of the pictures (default: 2)"),
            option(
                "--depths",
                type=depths,
                default=(),
                metavar="N,N",
                help="of coefficients (default: the trained ones)",
            ),
            option(
                "--reference", metavar="MODEL", help="of the similarity: an encoder (default: the bundle's full size)"
            ),
            QUIET,
            SIZE,
        ),
    ),
    "card": Command(
        f"{WORK}.publishing:card",
        "render a bundle's model card from its measured numbers",
        (
            BUNDLE_FOLDER,
            option("--repo", metavar="REPO", help="name in the loading example (default: the folder's)"),
            LICENSE,
        ),
    ),
    "app": Command(
        f"{WORK}.publishing:app",
        "show bundles on a page to try them on: sizes, budgets, your own pictures",
        (
            option("bundles", metavar="BUNDLE", nargs="+", help="folder or name on the Hub; several to choose from"),
            option("--data", help="sample pictures, as for the other commands; labels are not needed"),
            option("--host", default="127.0.0.1", help="0.0.0.0 for other machines too (default: %(default)s)"),
            option("--port", type=int, default=7860, help="default: %(default)s"),
        ),
    ),
    "push": Command(
        f"{WORK}.publishing:push",
        "push a bundle, or a pruned model, to the Hub and verify it by loading it back",
        (
            BUNDLE_FOLDER,
            option("repo", metavar="REPO", help="name on the Hub"),
            option("--private", action="store_true", default=None, help="if the repository is new"),
            option("--revision", help="branch (default: main)"),
            option("--subfolder", help="of the repository, for one of several bundles in it"),
            LICENSE,
            QUIET,
        ),
    ),
    "zoo": Command(
        f"{WORK}.publishing:zoo",
        "the released bundles: what each is for, its sizes and what they reach",
        (OUT_FILE,),
    ),
}
