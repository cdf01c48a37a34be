"""Laws of coefficients, recomposing and slicing; references: numpy, the papers' numbers, transformers' ViT."""

import math
from fractions import Fraction

import numpy
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from helpers import STOCK_PARTS, numpy_basis, numpy_nodes, tiny_config
from modeling_lingene.recompose_lingene import (
    coefficients,
    legal_width_ratios,
    nodes_at,
    read_width_ratio,
    recompose,
    resample_matrix,
    selected_rows,
    slice_tensor,
    sliced_shape,
)


PAPER = {"nodes": "uniform", "start_degree": 1}
FORMULAS = ["chebyshev", "legendre", "taylor", "fourier"]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def amplification(reference, depth, **fields):
    """Largest factor on the layers' size when solved components are recomposed to another depth (row sums)."""
    solved = numpy.linalg.inv(coefficients(reference, reference, **fields).numpy())
    return numpy.abs(coefficients(depth, reference, **fields).numpy() @ solved).sum(axis=1).max()


@pytest.mark.parametrize("start_degree", [0, 1, 3])
@pytest.mark.parametrize("nodes", ["roots", "uniform"])
@pytest.mark.parametrize("basis", FORMULAS)
def test_coefficients_are_numpys(basis, nodes, start_degree):
    """Every bundle ever saved is read through these formulas: any drift changes all of them."""
    for depth, count in [(1, 1), (4, 3), (6, 9), (12, 12)]:
        ours = coefficients(depth, count, basis=basis, nodes=nodes, start_degree=start_degree)
        x = numpy_nodes(depth, nodes)
        expected = numpy.stack([numpy_basis(x, basis, start_degree + n) for n in range(count)], axis=1)
        assert ours.dtype == torch.float64
        numpy.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-12)


def test_a_shorter_prefix_has_the_same_columns():
    """A bundle is used with its first components only: their coefficients must not depend on how many there are."""
    for basis in FORMULAS:
        assert torch.equal(coefficients(6, 2, basis=basis), coefficients(6, 5, basis=basis)[:, :2])


def test_paper_coefficients_are_those_printed():
    """The numbers of LinDec's Eq. 3 at 12 and 4 layers, worked out by hand."""
    table = coefficients(12, 12, **PAPER)
    assert table[1, 2].item() == pytest.approx(-0.2476852, abs=1e-7)
    assert table[3, 2].item() == pytest.approx(-0.6875, abs=1e-12)
    rows = [[0, -1, 0], [0.25, -0.875, -0.6875], [0.5, -0.5, -1], [0.75, 0.125, -0.5625]]
    numpy.testing.assert_allclose(coefficients(4, 3, **PAPER), rows, rtol=0, atol=1e-12)


def test_stable_coefficients_are_a_cosine_transform():
    """The preset `stable` at 4 layers, worked out by hand: cos of multiples of pi / 8."""
    big, small, half = 0.92388, 0.382683, 0.707107
    rows = [[1, -big, half, -small], [1, -small, -half, big], [1, small, -half, -big], [1, big, half, small]]
    numpy.testing.assert_allclose(coefficients(4, 4), rows, rtol=0, atol=1e-6)


def test_stable_is_well_conditioned_where_the_paper_is_not():
    """Why `stable` exists: solving for components loses no digits, with the paper's coefficients it loses all."""
    for depth in (12, 24):
        assert numpy.linalg.cond(coefficients(depth, depth)) == pytest.approx(math.sqrt(2), abs=1e-4)
    assert numpy.linalg.cond(coefficients(12, 12, **PAPER)) == pytest.approx(5.2e7, rel=0.01)
    assert numpy.linalg.cond(coefficients(24, 24, **PAPER)) > 1e16


@pytest.mark.parametrize("reference, bound", [(12, 2.5), (24, 2.8)])
def test_stable_hardly_amplifies_at_other_depths(reference, bound):
    """Recomposing solved components to other depths must not blow weights up, as the paper's coefficients do."""
    assert max(amplification(reference, depth) for depth in (3, 6, 18, 24, 36, 48)) <= bound
    assert amplification(12, 18, **PAPER) == pytest.approx(436, rel=0.01)
    for depth in (3, 6, 18, 24):
        assert amplification(12, depth) == pytest.approx(2.1, abs=0.05)


def test_on_roots_a_prefix_is_the_least_squares_fit():
    """What makes prefixes of a solved `stable` bundle the best ones: the basis is orthogonal on its nodes."""
    layers = normal(8, 5).numpy()
    table = coefficients(8, 8).numpy()
    solved = numpy.linalg.solve(table, layers)
    for count in range(1, 9):
        best = numpy.linalg.lstsq(table[:, :count], layers)[0]
        numpy.testing.assert_allclose(solved[:count], best, atol=1e-12)


def test_on_roots_degrees_from_the_depth_up_alias():
    """Fewer layers than components: T_L vanishes and T_(L+j) is -T_(L-j), so later components undo earlier ones."""
    table = coefficients(4, 8)
    numpy.testing.assert_allclose(table[:, 4], 0, atol=1e-12)
    for j in (1, 2, 3):
        numpy.testing.assert_allclose(table[:, 4 + j], -table[:, 4 - j], atol=1e-12)


@pytest.mark.parametrize("start_degree", [0, 1])
def test_degree_weight_divides_by_a_power_of_degree_plus_one(start_degree):
    """The weighting is by degree, not by position: with start degree 1 the first component is divided as well."""
    plain = coefficients(6, 4, start_degree=start_degree)
    weighted = coefficients(6, 4, start_degree=start_degree, degree_weight=1.5)
    powers = (numpy.arange(4) + start_degree + 1.0) ** 1.5
    numpy.testing.assert_allclose(weighted, plain.numpy() / powers, rtol=1e-14)


@pytest.mark.parametrize("kind", ["list", "tensor"])
def test_a_learned_matrix_is_used_as_it_is_at_its_own_depth(kind):
    """Interpolation must not touch the depth that the matrix was learned for, and prefixes are its first columns."""
    matrix = normal(6, 5)
    given = matrix.tolist() if kind == "list" else matrix
    assert torch.equal(coefficients(6, 5, basis="learned", matrix=given), matrix)
    assert torch.equal(coefficients(6, 2, basis="learned", matrix=given), matrix[:, :2])
    assert torch.equal(resample_matrix(matrix, 6), matrix)


@pytest.mark.parametrize("depth", [1, 2, 3, 7, 12, 25])
def test_a_learned_matrix_is_interpolated_over_the_middle_of_the_layers(depth):
    """numpy.interp over (l - 1/2) / L, which is clamped at both ends."""
    matrix = normal(6, 5).numpy()
    at, to = ((numpy.arange(count) + 0.5) / count for count in (6, depth))
    expected = numpy.stack([numpy.interp(to, at, column) for column in matrix.T], axis=1)
    ours = coefficients(depth, 5, basis="learned", matrix=torch.from_numpy(matrix))
    numpy.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


def test_rows_keep_layers_of_the_depth_computed():
    """Selecting layers takes coefficients at the old depth; at the new depth they would be other ones."""
    full = coefficients(12, 5)
    assert torch.equal(coefficients(12, 5, rows=[0, 3, 11]), full[[0, 3, 11]])
    matrix = normal(6, 5)
    assert torch.equal(coefficients(6, 5, basis="learned", matrix=matrix, rows=[0, 4]), matrix[[0, 4]])


def test_selected_rows_are_the_first_of_each_group():
    """The depth map `select` without rows chosen on data: floor(i L / L'), the first layer always among them."""
    assert selected_rows(12, 5) == [0, 2, 4, 7, 9]
    assert selected_rows(6, 4) == [0, 1, 3, 4]
    for depth in range(1, 13):
        assert selected_rows(12, depth) == [math.floor(Fraction(12, depth) * i) for i in range(depth)]


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("depth", {"depth": 0}),
        ("depth", {"depth": "six"}),
        ("depth", {"depth": 6.0}),
        ("depth", {"depth": True}),
        ("num_components", {"num_components": 0}),
        ("num_components", {"num_components": None}),
        ("basis", {"basis": "hermite"}),
        ("nodes", {"nodes": "equidistant"}),
        ("start_degree", {"start_degree": -1}),
        ("start_degree", {"start_degree": 0.5}),
        ("matrix", {"basis": "learned"}),
        ("matrix", {"matrix": [[1.0]]}),
        ("matrix", {"basis": "learned", "matrix": [[1.0, 2.0]] * 6}),
        ("matrix", {"basis": "learned", "matrix": [1.0, 2.0, 3.0]}),
        ("rows", {"rows": [0, 6]}),
        ("rows", {"rows": [-1]}),
    ],
)
def test_wrong_arguments_are_named(name, arguments):
    """A wrong argument is a ValueError that names it, never an IndexError, nor coefficients of something else."""
    with pytest.raises(ValueError, match=f"`{name}`"):
        coefficients(**{"depth": 6, "num_components": 3, **arguments})


def test_unknown_nodes_are_named():
    """The positions are used on their own too."""
    with pytest.raises(ValueError, match="`nodes`"):
        nodes_at(4, "equidistant")


@pytest.mark.parametrize("shape", [(7,), (4, 6), (2, 3, 5, 4)])
def test_recompose_is_einsum(shape):
    """LinDec, Eq. 1, for vectors, matrices and anything else, in float64."""
    components, table = normal(5, *shape), coefficients(6, 5)
    expected = numpy.einsum("ln,n...->l...", table.numpy(), components.numpy())
    ours = recompose(components, table)
    assert ours.shape == (6, *shape) and ours.dtype == torch.float64
    numpy.testing.assert_allclose(ours, expected, rtol=0, atol=1e-13)


def test_bfloat16_components_are_combined_in_float32():
    """Each result is the bfloat16 number next to the exact sum; a sum in bfloat16, which autocast asks for, is not."""
    components, table = normal(12, 40, 40).bfloat16(), coefficients(12, 12, degree_weight=1.0)
    exact = torch.einsum("ln,n...->l...", table, components.double())
    half_unit = 2.0 ** (torch.frexp(exact).exponent - 9) + 1e-5  # of bfloat16's 8 digits; and float32's own error
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = recompose(components, table)
        naive = torch.einsum("ln,n...->l...", table.bfloat16(), components)
    assert ours.dtype == torch.bfloat16
    assert ((ours.double() - exact).abs() <= half_unit).all()
    assert ((naive.double() - exact).abs() > half_unit).double().mean() > 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_does_not_reach_the_combination(dtype):
    """Under autocast the layer weights must be those of the materialised model, to the last bit."""
    components, table = normal(5, 16, 16, dtype=dtype), coefficients(6, 5)
    plain = recompose(components, table)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = recompose(components, table)
    assert cast.dtype == dtype and torch.equal(cast, plain)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_gradient_of_a_component_is_the_weighted_sum_over_layers(autocast):
    """dL/dA_n = sum_l a(l, n) dL/dW_l: what trains the components."""
    components, table, upstream = normal(5, 4, 3).requires_grad_(), coefficients(6, 5), normal(6, 4, 3, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        recompose(components, table).backward(upstream)
    expected = numpy.einsum("ln,l...->n...", table.numpy(), upstream.numpy())
    numpy.testing.assert_allclose(components.grad, expected, rtol=0, atol=1e-13)


def bundle_shapes(config):
    """Every tensor of a bundle with one component, by key."""
    shapes = {f"components.0.{name}": shape for name, shape in config.component_shapes().items()}
    head = {"classifier.weight": (config.num_labels, config.hidden_size), "classifier.bias": (config.num_labels,)}
    return shapes | config.shared_shapes() | head


@pytest.mark.parametrize("ratio", [Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)])
def test_slicing_commutes_with_recomposing(ratio):
    """Slicing the components once is allowed only because it gives the slice of the full model, to the last bit.

    Components are whole numbers and coefficients eighths: every order of summation gives the same number.
    """
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(-8, 9, (6, 5), generator=generator).double() / 8
    for key, shape in bundle_shapes(tiny_config()).items():
        components = torch.randint(-50, 51, (5, *shape), generator=generator).float()
        sliced = torch.stack([slice_tensor(key, component, ratio) for component in components])
        layers = torch.stack([slice_tensor(key, layer, ratio) for layer in recompose(components, table)])
        assert sliced[0].shape == sliced_shape(key, shape, ratio)
        assert torch.equal(recompose(sliced, table), layers), key


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_slice_keeps_the_leading_heads_whole(kept):
    """Cutting heads in the middle mixes what they do: of (heads, head size) whole heads stay, in every projection."""
    heads, head_size = 4, 12
    d, ratio = heads * head_size, Fraction(kept, heads)
    width = kept * head_size
    matrix = normal(d, d)
    by_rows = matrix.numpy().reshape(heads, head_size, d)[:kept, :, :width].reshape(width, width)
    by_columns = matrix.numpy().reshape(d, heads, head_size)[:width, :kept].reshape(width, width)
    bias = matrix[0].numpy().reshape(heads, head_size)[:kept].reshape(-1)
    for name in ("query", "key", "value"):
        numpy.testing.assert_array_equal(slice_tensor(f"attention.{name}.weight", matrix, ratio), by_rows)
        numpy.testing.assert_array_equal(slice_tensor(f"attention.{name}.bias", matrix[0], ratio), bias)
    numpy.testing.assert_array_equal(slice_tensor("attention.output.weight", matrix, ratio), by_columns)


def stock_shapes(config, ratio):
    """Shapes of a stock ViT of the smaller configuration with one layer, under a bundle's keys."""
    fields = {name: getattr(config, name) for name in ("image_size", "patch_size", "num_channels", "qkv_bias")}
    for name in ("hidden_size", "num_attention_heads", "intermediate_size"):
        fields[name] = int(getattr(config, name) * ratio)
    with torch.device("meta"):
        vit = ViTForImageClassification(ViTConfig(**fields, num_hidden_layers=1, num_labels=config.num_labels))
    shapes = {}
    for key, tensor in vit.state_dict().items():
        key = key.removeprefix("vit.").replace("patch_embeddings.projection", "patch_embeddings")
        for ours, stock in STOCK_PARTS.items():
            if key.startswith(f"layers.0.{stock}."):
                key = key.replace(f"layers.0.{stock}", f"components.0.{ours}")
        shapes[key] = tuple(tensor.shape)
    return shapes


@pytest.mark.parametrize("fields", [{}, {"qkv_bias": False}, {"image_size": [8, 20], "patch_size": [4, 5]}])
@pytest.mark.parametrize("ratio", [Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), Fraction(1)])
def test_every_slice_has_the_shape_of_the_smaller_stock_model(ratio, fields):
    """A slice loads into a stock configuration: same tensors, same shapes, nothing more and nothing less."""
    config = tiny_config(**fields)
    sliced = {
        key: tuple(slice_tensor(key, torch.empty(shape, device="meta"), ratio).shape)
        for key, shape in bundle_shapes(config).items()
    }
    assert sliced == stock_shapes(config, ratio)


def test_a_slice_is_a_view_of_the_leading_part():
    """Slicing inside a forward pass must copy nothing; who keeps a slice clones it."""
    tensor = normal(48, 48)
    part = slice_tensor("attention.query.weight", tensor, Fraction(1, 2))
    assert part.data_ptr() == tensor.data_ptr() and torch.equal(part, tensor[:24, :24])


def test_a_slice_through_a_unit_is_refused():
    """Nothing is rounded: a third of 48 channels is 16, of 100 MLP units it is no number of units."""
    assert sliced_shape("mlp.fc1.weight", (96, 48), Fraction(1, 3)) == (32, 16)
    with pytest.raises(ValueError, match="`width_ratio` 1/3"):
        sliced_shape("mlp.fc1.weight", (100, 48), Fraction(1, 3))


@pytest.mark.parametrize(
    "given, meant",
    [
        ("1/3", Fraction(1, 3)),
        (0.3333333, Fraction(1, 3)),
        (1 / 3, Fraction(1, 3)),
        ("0.3333333", Fraction(1, 3)),
        (0.5, Fraction(1, 2)),
        ("0.5", Fraction(1, 2)),
        ("2/4", Fraction(1, 2)),
        (Fraction(5, 6), Fraction(5, 6)),
        (0.8333333, Fraction(5, 6)),
        (1, Fraction(1)),
        (1.0, Fraction(1)),
        (0.9999999, Fraction(1)),
        (0, Fraction(0)),
        (-1, Fraction(-1)),
        (2, Fraction(2)),
    ],
)
def test_a_width_ratio_is_read_as_the_fraction_that_is_meant(given, meant):
    """Floats of thirds and fraction strings are the same ratio; whether it is legal is asked afterwards."""
    assert read_width_ratio(given, heads=6) == meant


@pytest.mark.parametrize("given", [0.33333, 0.334, 0.4999, "0.51", 0.999])
def test_a_ratio_near_a_legal_one_is_not_taken_for_it(given):
    """Beyond 1e-6 nothing is rounded: what is close to a third is no third."""
    assert read_width_ratio(given, heads=6) not in legal_width_ratios(6, 96)


@pytest.mark.parametrize("given", [True, False, "x", "", "1/0", math.nan, math.inf, None, [1], "1/2/3"])
def test_what_is_no_ratio_is_refused(given):
    """True would pass for 1, and the others for a traceback from the standard library."""
    with pytest.raises(ValueError, match="`width_ratio`"):
        read_width_ratio(given, heads=6)


@pytest.mark.parametrize(
    "heads, units, legal",
    [
        (4, 96, ["1/4", "1/2", "3/4", "1"]),
        (6, 100, ["1/2", "1"]),
        (6, 96, ["1/6", "1/3", "1/2", "2/3", "5/6", "1"]),
        (3, 10, ["1"]),
        (1, 7, ["1"]),
    ],
)
def test_legal_ratios_leave_whole_heads_and_units(heads, units, legal):
    """The list that error messages show, ascending."""
    assert legal_width_ratios(heads, units) == [Fraction(ratio) for ratio in legal]


def test_every_dimension_that_a_width_slices_must_divide():
    """The second one, of a matrix, would be rounded down in silence."""
    assert sliced_shape("mlp.fc1.weight", (4, 6), Fraction(1, 2)) == (2, 3)
    for shape in ((4, 5), (5, 4)):
        with pytest.raises(ValueError, match="does not divide `mlp.fc1.weight`"):
            sliced_shape("mlp.fc1.weight", shape, Fraction(1, 2))
