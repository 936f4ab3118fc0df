"""One description of the correspondence of two state dicts serves both directions and proves that nothing is lost."""

import pytest
import torch
from torch import Tensor

from ocpgem.errors import CheckpointError
from ocpgem.models.import_weights.mapping import KeyMap

W, V = torch.arange(6.0).reshape(2, 3), torch.tensor([1.0, 2.0])


def described() -> KeyMap:
    keys = KeyMap()
    keys.move("layers.0.weight", "ours.first")
    keys.move("turned", "ours.turned", transform=lambda w: w.t().contiguous(), inverse=lambda w: w.t())
    keys.move_scale("block.scale", "ours.scale")
    keys.alias_below("second.", "layers.")
    keys.constant("offset", V)
    return keys


def released() -> dict[str, Tensor]:
    return {
        "offset": V,
        "layers.0.weight": V,
        "turned": W,
        "second.0.weight": V.clone(),
        "block.scale.scale_factor": torch.tensor(0.7),
    }


def expected() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"first": (2,), "turned": (3, 2), "scale.factor": ()}
    tensors = {f"ours.{key}": torch.empty(shape) for key, shape in shapes.items()}
    return tensors | {"ours.scale.fitted": torch.empty((), dtype=torch.bool)}


def convert(source: dict[str, Tensor]) -> dict[str, Tensor]:
    return described().to_ours(source, expected(), "file.pt")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


def test_there_and_back_is_the_same_with_second_names_constants_and_transforms() -> None:
    ours = convert(released())
    assert ours["ours.turned"].equal(W.t())
    assert float(ours["ours.scale.factor"]) == pytest.approx(0.7)
    assert bool(ours["ours.scale.fitted"])
    assert same(described().to_released(ours), released())


def test_second_names_and_constants_may_be_absent_and_a_second_name_alone_is_enough() -> None:
    source = released()
    del source["offset"], source["layers.0.weight"]
    assert same(convert(source), convert(released()))


def test_a_scale_factor_of_zero_means_not_fitted_except_in_the_original_code() -> None:
    unfitted = released() | {"block.scale.scale_factor": torch.zeros(1)}
    ours = convert(unfitted)
    assert float(ours["ours.scale.factor"]) == 1
    assert not bool(ours["ours.scale.fitted"])
    assert float(described().to_released(ours)["block.scale.scale_factor"]) == 0
    assert float(described().unfitted_scales()["block.scale.scale_factor"]) == 0

    original = KeyMap()
    original.move_scale("scale", "ours.scale", zero_is_unfitted=False)
    target = {key: value for key, value in expected().items() if "scale" in key}
    ones = original.to_ours({"scale.scale_factor": torch.tensor(1.0)}, target, "file.pt")
    assert bool(ones["ours.scale.fitted"])
    assert float(original.to_released(ones)["scale.scale_factor"]) == 1
    assert float(original.unfitted_scales()["scale.scale_factor"]) == 1


def test_a_factor_that_was_never_marked_as_fitted_is_not_lost_on_the_way_out() -> None:
    ours = convert(released()) | {"ours.scale.fitted": torch.tensor(False)}
    assert float(described().to_released(ours)["block.scale.scale_factor"]) == pytest.approx(0.7)


def test_everything_that_does_not_fit_is_told_at_once() -> None:
    source = released() | {"foreign.weight": V, "turned": torch.zeros(2, 2)}
    del source["layers.0.weight"], source["second.0.weight"], source["block.scale.scale_factor"]
    with pytest.raises(CheckpointError) as caught:
        convert(source)
    message = str(caught.value)
    assert "unused keys ['foreign.weight']" in message
    assert "ours.first (from layers.0.weight)" in message
    assert "ours.scale (from block.scale.scale_factor)" in message
    assert "ours.turned is [2, 2] but the model needs [3, 2]" in message
    assert "\n" not in message


def test_a_second_name_or_a_constant_with_another_value_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"second\.0\.weight differs from layers\.0\.weight"):
        convert(released() | {"second.0.weight": V + 1})
    with pytest.raises(CheckpointError, match="the constant offset"):
        convert(released() | {"offset": V + 1e-3})
    assert convert(released() | {"offset": V.double() * (1 + 1e-8)})


def test_endings_and_prefixes_of_second_names_combine() -> None:
    keys = KeyMap()
    keys.move("layers.0.linear.weight", "ours.first")
    keys.alias_below("second.", "layers.")
    keys.alias_endings(".weight", ".linear.weight")
    names = {"layers.0.linear.weight", "second.0.linear.weight", "layers.0.weight", "second.0.weight"}
    assert keys.to_released({"ours.first": V}).keys() == names


def test_trainable_parameters_come_in_the_order_of_the_file_each_once() -> None:
    order = ["offset", "second.0.weight", "block.scale.scale_factor", "turned", "layers.0.weight"]
    assert described().trainable(order) == ["second.0.weight", "turned"]
    source = released()
    kept = described().without_second_names({key: source[key] for key in order})
    assert list(kept) == ["offset", "second.0.weight", "block.scale.scale_factor", "turned"]
