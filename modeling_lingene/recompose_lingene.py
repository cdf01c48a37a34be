"""From shared components to layer weights, as pure functions on tensors: coefficients, recompose, slices.

    W_l = sum_n a(l, n) A_n                                             (LinDec, Eq. 1)

LinDec is Lin et al., "Linearly Decomposing and Recomposing Vision Transformers for Diverse-Scale Models", NeurIPS
2024; the slices are those of Scala (Zhang et al., NeurIPS 2024, arXiv 2412.04786), cut by whole heads.

Notation of the whole package: b batch, t tokens, d hidden size, h heads, n components, l depth, m MLP units.
"""

import math
from fractions import Fraction

import torch


BASES = ("chebyshev", "legendre", "taylor", "fourier", "learned")
NODES = ("roots", "uniform")
DEPTH_MAPS = ("resample", "select")
PRESETS = {
    # The coefficients of the paper (Eq. 3): T_1..T_N at (l - 1) / L, with gains centred on 1 as T_0 is not among them.
    "paper": {"nodes": "uniform", "start_degree": 1, "gain_offset": 1.0, "depth_map": "resample"},
    # T_0..T_{N-1} at the Chebyshev roots: a discrete cosine transform over depth, condition number sqrt(2) at N = L.
    # Its high degrees alias at other depths, so that fewer layers are selected, not resampled.
    "stable": {"nodes": "roots", "start_degree": 0, "gain_offset": 0.0, "depth_map": "select"},
}

BLOCK_LINEARS = ("attention.query", "attention.key", "attention.value", "attention.output", "mlp.fc1", "mlp.fc2")
BLOCK_NORMS = ("norm1", "norm2")
RESIDUAL_OUTPUTS = ("attention.output", "mlp.fc2")
POSITION_BIAS = "attention.position_bias"  # of blocks that have relative positions

WIDTH_TOLERANCE = 1e-6


def nodes_at(depth: int, nodes: str) -> torch.Tensor:
    """Positions x_l of the layers l = 1..depth: `uniform` (l - 1) / L in [0, 1), `roots` -cos(pi (2l - 1) / (2L)).

    Returns:
        (depth,) float64, ascending.
    """
    layer = torch.arange(1, depth + 1, dtype=torch.float64, device="cpu")  # whatever the caller's default device
    if nodes == "uniform":
        return (layer - 1) / depth
    if nodes == "roots":
        return -torch.cos(math.pi * (2 * layer - 1) / (2 * depth))
    raise ValueError(f"`nodes` must be one of {', '.join(NODES)}, got {nodes!r}.")


def basis_at(x: torch.Tensor, basis: str, degrees: range) -> torch.Tensor:
    """Values of one basis at positions x, one column per degree.

    Chebyshev T_n and Legendre P_n by their three-term recurrences, Taylor x^n, Fourier f_0 = 1,
    f_{2m-1} = cos(pi m x), f_{2m} = sin(pi m x). Chebyshev is LinDec's Eq. 3; the paper names the other three
    (Table 1) without their formulas.

    Args:
        x: (l,) float64.
        degrees: the degrees wanted, ascending.

    Returns:
        (l, len(degrees)) float64.
    """
    if basis == "taylor":
        return torch.stack([x**n for n in degrees], dim=1)
    if basis == "fourier":
        return torch.stack([fourier(x, n) for n in degrees], dim=1)
    if basis not in ("chebyshev", "legendre"):
        raise ValueError(f"`basis` must be one of {', '.join(BASES)}, got {basis!r}.")
    values = [torch.ones_like(x), x]
    for n in range(1, degrees.stop - 1):
        if basis == "chebyshev":
            values.append(2 * x * values[n] - values[n - 1])
        else:
            values.append(((2 * n + 1) * x * values[n] - n * values[n - 1]) / (n + 1))
    return torch.stack([values[n] for n in degrees], dim=1)


def fourier(x: torch.Tensor, n: int) -> torch.Tensor:
    """1, cos(pi x), sin(pi x), cos(2 pi x), sin(2 pi x), ... for n = 0, 1, 2, ..."""
    angle = math.pi * ((n + 1) // 2) * x
    return torch.cos(angle) if n % 2 or n == 0 else torch.sin(angle)


def resample_matrix(matrix: torch.Tensor, depth: int) -> torch.Tensor:
    """A learned coefficient matrix at another depth: linear interpolation over (l - 1/2) / L, clamped at the ends.

    Args:
        matrix: (reference depth, n) float64.

    Returns:
        (depth, n) float64.
    """
    reference = matrix.shape[0]
    position = ((torch.arange(depth, dtype=torch.float64, device="cpu") + 0.5) * reference / depth - 0.5).clamp(
        0, reference - 1
    )
    below = position.floor().long()
    above = (below + 1).clamp(max=reference - 1)
    weight = (position - below).unsqueeze(1)
    return matrix[below] * (1 - weight) + matrix[above] * weight


def coefficients(
    depth: int,
    num_components: int,
    *,
    basis: str = "chebyshev",
    nodes: str = "roots",
    start_degree: int = 0,
    degree_weight: float = 0.0,
    matrix: list[list[float]] | torch.Tensor | None = None,
    rows: list[int] | None = None,
) -> torch.Tensor:
    """The coefficients a(l, n) of LinDec's Eq. 1; fixed by the formula, never trained (but for `learned`).

    Args:
        depth: number of layers the formula is evaluated for.
        num_components: number of components n used, the first ones.
        basis: chebyshev (Eq. 3), legendre, taylor, fourier (Table 1), or learned (`matrix`).
        nodes: where layer l sits: `roots` -cos(pi (2l - 1) / (2L)), or the paper's `uniform` (l - 1) / L.
        start_degree: degree of the first component; the paper uses 1.
        degree_weight: w divides the column of degree g by (g + 1)^w.
        matrix: (reference depth, at least num_components), for `learned` only; interpolated to another depth.
        rows: keep these layers, counted from 0, of the `depth` computed (depth map `select`).

    Returns:
        (depth, num_components) float64, or (len(rows), num_components).

    Raises:
        ValueError: an unknown basis or nodes, a count below 1, a matrix too narrow or where there must be none.
    """
    for name, value in (("depth", depth), ("num_components", num_components)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
    check_degree("start_degree", start_degree)
    if basis not in BASES:
        raise ValueError(f"`basis` must be one of {', '.join(BASES)}, got {basis!r}.")
    if (matrix is not None) != (basis == "learned"):
        raise ValueError("`matrix` belongs to the basis 'learned': give both or neither.")
    if basis == "learned":
        table = torch.as_tensor(matrix, dtype=torch.float64, device="cpu")
        if table.dim() != 2 or table.shape[1] < num_components:
            raise ValueError(
                f"`matrix` must be of shape (layers, at least {num_components}), got {tuple(table.shape)}."
            )
        table = table[:, :num_components]
        table = table if depth == table.shape[0] else resample_matrix(table, depth)
    else:
        degrees = range(start_degree, start_degree + num_components)
        table = basis_at(nodes_at(depth, nodes), basis, degrees)
        if degree_weight:
            table = table / (torch.tensor(degrees, dtype=torch.float64, device="cpu") + 1) ** degree_weight
    if rows is None:
        return table
    if not all(isinstance(row, int) and 0 <= row < depth for row in rows):
        raise ValueError(f"`rows` must be layers from 0 to {depth - 1}, got {list(rows)}.")
    return table[list(rows)]


def check_degree(name: str, value: int) -> None:
    """Refuse what is no degree of a polynomial."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"`{name}` must be an integer of at least 0, got {value!r}.")


def selected_rows(reference_depth: int, depth: int, period: int = 1) -> list[int]:
    """Layers kept by the depth map `select` where none were chosen on data: floor(i * reference / depth).

    Args:
        period: after how many layers the same kind of layer comes again, as unshifted and shifted windows do; whole
            periods are kept, so that every layer stays of its kind.
    """
    runs, asked = -(-reference_depth // period), -(-depth // period)
    rows = [period * (i // period * runs // asked) + i % period for i in range(depth)]
    # An odd depth may end in a period that the reference has half of only.
    return [min(row, reference_depth - 1) for row in rows]


def is_gain(name: str) -> bool:
    """Whether a tensor, by its name in a block or outside, is the gain of a LayerNorm."""
    part, _, kind = name.rpartition(".")
    return kind == "weight" and part.rpartition(".")[2] in (*BLOCK_NORMS, "norm")


def recompose(components: torch.Tensor, coefficients: torch.Tensor, base: torch.Tensor | None = None) -> torch.Tensor:
    """W_l = sum_n a(l, n) A_n for all layers at once (LinDec, Eq. 1), differentiable in the components.

    The sum runs in at least float32 with autocast off, then returns to the components' dtype: in bfloat16 a
    coefficient such as 0.1111 would already be off in its third digit.

    Args:
        components: (n, ...) one kind of tensor, stacked over the components.
        coefficients: (l, n).
        base: (l, ...) in at least float32, added: the share of components that are held fixed.

    Returns:
        (l, ...) in the dtype of `components`.
    """
    wide = torch.promote_types(components.dtype, torch.float32)
    device = "cpu" if components.is_meta else components.device.type  # autocast does not know meta
    with torch.autocast(device, enabled=False):
        table = coefficients.to(device=components.device, dtype=wide)
        flat = components.to(wide).flatten(1)
        flat = table @ flat if base is None else torch.addmm(base.to(wide).flatten(1), table, flat)
    return flat.view(-1, *components.shape[1:]).to(components.dtype)


def read_width_ratio(width_ratio: float | int | str | Fraction, heads: int, name: str = "width_ratio") -> Fraction:
    """A width ratio as the fraction that is meant: 0.3333333 of 6 heads is 1/3.

    A ratio further than 1e-6 from every fraction of the heads is returned as it is; it is not a legal one.

    Raises:
        ValueError: not a number or fraction string; `name` is what the message calls it.
    """
    try:
        if isinstance(width_ratio, bool):
            raise TypeError("a bool is not a ratio")
        exact = Fraction(width_ratio)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(
            f"`{name}` must be a number or a fraction string such as '1/2', got {width_ratio!r}."
        ) from None
    ratio = exact.limit_denominator(heads)
    return ratio if abs(ratio - exact) <= WIDTH_TOLERANCE else exact


def legal_width_ratios(heads: int, intermediate_size: int) -> list[Fraction]:
    """Every ratio that leaves whole heads and whole MLP units, ascending."""
    ratios = [Fraction(k, heads) for k in range(1, heads + 1)]
    return [ratio for ratio in ratios if (ratio * intermediate_size).denominator == 1]


def block_linears(gated: bool) -> tuple[str, ...]:
    """The linear maps of one block in the order of stock ViTs; a gated MLP's gate comes before what it gates."""
    return (*BLOCK_LINEARS[:4], "mlp.gate", *BLOCK_LINEARS[4:]) if gated else BLOCK_LINEARS


def block_shapes(width: int, units: int, qkv_bias: bool, gated: bool = False) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of one block, by its name within it."""
    out_in = {"mlp.gate": (units, width), "mlp.fc1": (units, width), "mlp.fc2": (width, units)}
    shapes = {}
    for name in block_linears(gated):
        shapes[f"{name}.weight"] = out_in.get(name, (width, width))
        if qkv_bias or name.startswith("mlp") or name == "attention.output":
            shapes[f"{name}.bias"] = shapes[f"{name}.weight"][:1]
    for name in BLOCK_NORMS:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes


def sliced_dims(key: str) -> tuple[int, ...]:
    """Which dimensions of a bundle's tensor shrink with the width (Scala): all but images, tokens and classes."""
    if key.startswith("embeddings."):
        return (0,) if "patch_embeddings" in key or "norm" in key else (2,)
    if key.startswith("classifier."):
        return () if key.endswith("bias") else (1,)
    if ".downsample." in key:  # of four patches side by side, each with the channels of its own
        return (1,) if "norm" in key else (0, 2)
    if POSITION_BIAS in key:  # a number per head for every way between two patches
        return (1,)
    return (0, 1) if key.endswith("weight") and "norm" not in key else (0,)


def sliced_shape(key: str, shape: tuple[int, ...], ratio: Fraction) -> tuple[int, ...]:
    """The shape of a bundle's tensor at a legal width ratio; nothing is rounded."""
    dims, (above, below) = sliced_dims(key), ratio.as_integer_ratio()  # integers: torch.compile traces no Fraction
    if any(shape[dim] * above % below for dim in dims):
        raise ValueError(f"`width_ratio` {ratio} does not divide `{key}` of shape {tuple(shape)} into whole units.")
    return tuple(size * above // below if dim in dims else size for dim, size in enumerate(shape))


def kept(key: str, shape: tuple[int, ...], ratio: Fraction, trailing: bool = False) -> tuple[slice, ...]:
    """Where a width ratio lies in a bundle's tensor: first along every dimension, or last."""
    sizes = sliced_shape(key, shape, ratio)
    return tuple(channels_kept(full, size, trailing) for full, size in zip(shape, sizes))


def channels_kept(full: int, size: int, trailing: bool) -> slice:
    """Where so many of all channels lie that a width keeps: first, or last."""
    return slice(full - size, full) if trailing else slice(size)


def slice_tensor(key: str, tensor: torch.Tensor, ratio: Fraction, trailing: bool = False) -> torch.Tensor:
    """The leading part of a bundle's tensor at a width ratio, as a view.

    q, k, v are kept by whole heads: rows come head by head and the head size stays, so the leading r of them are the
    leading r * h heads. Slicing commutes with recomposing, both being linear in the components.

    Args:
        key: the tensor's name in the bundle, with or without `components.{n}.`.
        tensor: at full width.
        ratio: a legal width ratio.
        trailing: the last part instead: Scala's isolated activation, of widths between the smallest and the full.

    Returns:
        A view of shape `sliced_shape(key, tensor.shape, ratio)`.
    """
    if ratio == 1:
        return tensor
    return tensor[kept(key, tensor.shape, ratio, trailing)]
