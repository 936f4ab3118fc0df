"""Released files of every age mean the same model; what is missing, double or wrong is told."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from ocpgem.errors import CheckpointError, RequestError
from ocpgem.models.import_weights.export import export_released
from ocpgem.models.import_weights.released import Imported, import_released
from ocpgem.models.potential import Normalization
from tests.unit.models.released_files import MODELS, OC20, container, equal_weights, random_potential, trained
from tests.unit.models.test_import_safe_load import Calls


def read(content: object, folder: Path, **options: Any) -> Imported:
    torch.save(content, folder / "file.pt")
    return import_released(folder / "file.pt", **options)


def without_scales(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.endswith(".scale_factor")}


def scales_of(state: dict[str, Tensor]) -> dict[str, float]:
    """By module path, as the published .pt files have them."""
    end = ".scale_factor"
    return {key.removesuffix(end): float(value) for key, value in state.items() if key.endswith(end)}


def old_names(scales: dict[str, float]) -> dict[str, float]:
    """As the published JSON files of GemNet-T have them."""
    renamed: dict[str, float] = {}
    for key, value in scales.items():
        kind, number, *rest = key.split(".")
        if kind == "out_blocks":
            name = f"OutBlock_{number}_" + ("sum" if rest == ["scale_sum"] else "had")
        elif rest[0] == "atom_update":
            name = f"AtomUpdate_{int(number) + 1}_sum"
        else:
            name = f"TripInteraction_{int(number) + 1}_" + (
                "had_rbf" if rest[1] == "scale_rbf" else "sum_cbf"
            )
        renamed[name] = value
    return renamed


@pytest.mark.parametrize(
    "prefix", ["module.module.", "module.", "_orig_mod.", "module._orig_mod.", "backbone."]
)
@pytest.mark.parametrize("name", ["dT", "OC"])
def test_prefixes_of_wrappers_do_not_matter(name: str, prefix: str, tmp_path: Path) -> None:
    potential, content = container(tmp_path, name)
    content["state_dict"] = {prefix + key: value for key, value in content["state_dict"].items()}
    imported = read(content, tmp_path).potential
    assert equal_weights(imported, potential)
    assert imported.normalization == OC20


def test_the_old_layout_of_settings_and_normalisers(tmp_path: Path) -> None:
    potential, content = container(tmp_path)
    model = content["config"].pop("model")
    content["config"] |= {"model": model.pop("name"), "model_attributes": model | {"num_targets": 1}}
    content["normalizers"] = {
        "target": {"mean": torch.tensor([OC20.energy_mean]), "std": torch.tensor([OC20.energy_std])},
        "grad_target": {"mean": torch.tensor(0.0), "std": torch.tensor(OC20.forces_std)},
    }
    imported = read(content, tmp_path).potential
    assert equal_weights(imported, potential)
    assert imported.config == potential.config
    assert imported.normalization.energy_std == OC20.energy_std
    assert imported.normalization.energy_mean == pytest.approx(OC20.energy_mean)
    assert imported.normalization.forces_std == OC20.forces_std


OLD_DATASET = {"normalize_labels": True, "target_mean": -0.5, "target_std": 2.0, "grad_target_std": 3.0}
NEW_DATASET = {
    "transforms": {
        "normalizer": {"energy": {"mean": -0.5, "stdev": 2.0}, "forces": {"mean": 0.0, "stdev": 3.0}}
    }
}


@pytest.mark.parametrize(
    "dataset",
    [
        OLD_DATASET | {"grad_target_mean": 0.0},
        [OLD_DATASET | {"src": "train"}, {"src": "val"}],
        {"train": OLD_DATASET},
        NEW_DATASET,
        {"train": NEW_DATASET, "val": {}},
    ],
)
def test_without_stored_normalisers_those_of_the_configuration_count(dataset: object, tmp_path: Path) -> None:
    _, content = container(tmp_path)
    del content["normalizers"]
    content["config"]["dataset"] = dataset
    imported = read(content, tmp_path)
    assert imported.potential.normalization == Normalization(energy_mean=-0.5, energy_std=2.0, forces_std=3.0)
    assert any("from the file's configuration" in note for note in imported.notes)


def test_labels_that_were_not_normalised_stay_as_they_are(tmp_path: Path) -> None:
    _, content = container(tmp_path)
    del content["normalizers"]
    content["config"]["dataset"] = {"normalize_labels": False, "target_mean": 3.0, "target_std": 2.0}
    assert read(content, tmp_path).potential.normalization == Normalization()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"energy": {"mean": 0.0}}, "normaliser of energy needs .* has mean 0.0, std None"),
        ({"energy": {"mean": torch.tensor(0.0), "std": torch.tensor(0.0)}}, "energy needs .* std 0.0 "),
        ({"energy": [0.0, 1.0]}, "normaliser of energy is a list"),
        ({"forces": {"mean": 0.1, "std": 1.0}}, "by the mean 0.1"),
        ([1, 2], "normalizers are a list"),
    ],
)
def test_a_normaliser_without_a_meaning_is_refused(entry: object, message: str, tmp_path: Path) -> None:
    _, content = container(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        read(content | {"normalizers": entry}, tmp_path)


def test_gradient_forces_with_a_scale_of_their_own_are_refused(tmp_path: Path) -> None:
    _, content = container(tmp_path, "T")
    content["normalizers"]["forces"]["rmsd"] = torch.tensor(1.0)
    with pytest.raises(CheckpointError, match="do not belong to the energy"):
        read(content, tmp_path)


def test_element_references_are_added_per_atom(tmp_path: Path) -> None:
    _, content = container(tmp_path)
    table = torch.zeros(101)
    table[1], table[78] = -3.5, -6.25
    for references in ({"energy": {"element_references": table}}, {"target": table}):
        imported = read(content | {"elementrefs": references}, tmp_path)
        assert imported.potential.normalization.element_energies == {1: -3.5, 78: -6.25}
        assert any("element references: 2 elements" in note for note in imported.notes)


@pytest.mark.parametrize(
    "references", [[1.0], {"energy": 3.0}, {"forces": torch.zeros(3)}, {"energy": torch.ones(130)}]
)
def test_element_references_of_another_form_are_refused(references: object, tmp_path: Path) -> None:
    _, content = container(tmp_path)
    with pytest.raises(CheckpointError, match="elementrefs"):
        read(content | {"elementrefs": references}, tmp_path)


def test_element_references_that_only_the_settings_mention_are_said_aloud(tmp_path: Path) -> None:
    _, content = container(tmp_path)
    content["config"]["dataset"] = {"train": {"lin_ref": "refs/lin.npz"}}
    notes = read(content, tmp_path).notes
    assert any(
        "relative to those of refs/lin.npz" in note and "--element-references" in note for note in notes
    )


def test_element_references_of_another_file_travel_with_the_model_and_back(tmp_path: Path) -> None:
    _, content = container(tmp_path)
    content["config"]["dataset"] = {"train": {"lin_ref": "refs/lin.npz"}}
    torch.save(content, tmp_path / "oc22.pt")
    table = np.zeros(100)
    table[[1, 78]] = -3.5, -6.25
    np.savez(tmp_path / "lin.npz", coeff=table)
    imported = import_released(tmp_path / "oc22.pt", element_references=tmp_path / "lin.npz")
    assert imported.potential.normalization.element_energies == {1: -3.5, 78: -6.25}
    assert any("2 elements, from" in note and "lin.npz" in note for note in imported.notes)
    assert not any("relative to those" in note for note in imported.notes)
    export_released(imported.potential, tmp_path / "back.pt")
    again = import_released(tmp_path / "back.pt")
    assert again.potential.normalization == imported.potential.normalization
    with pytest.raises(RequestError, match="has element references of its own"):
        import_released(tmp_path / "back.pt", element_references=tmp_path / "lin.npz")


@pytest.mark.parametrize("place", ["scale_dict", "the settings", "a .pt file", "a JSON file"])
@pytest.mark.parametrize("names", ["paths", "old", "prefixed"])
def test_scale_factors_apart_from_the_weights_are_found_under_every_name(
    names: str, place: str, tmp_path: Path
) -> None:
    potential, content = container(tmp_path)
    scales: dict[str, Any] = scales_of(content["state_dict"])
    if names == "old":
        scales = old_names(scales) | {"comment": "fitted on 2M"}
    elif names == "prefixed":
        scales = {f"module.backbone.{key}.scale_factor": torch.tensor(value) for key, value in scales.items()}
    content["state_dict"] = without_scales(content["state_dict"])
    options = {}
    if place == "scale_dict":
        content["scale_dict"] = scales
    elif place == "the settings":
        content["config"]["model"]["scale_file"] = scales
    elif place == "a .pt file":
        torch.save(scales, tmp_path / "scales.pt")
        options = {"scale_file": str(tmp_path / "scales.pt")}
    else:
        (tmp_path / "scales.json").write_text(
            json.dumps({key: v if isinstance(v, str) else float(v) for key, v in scales.items()})
        )
        options = {"scale_file": str(tmp_path / "scales.json")}
    imported = read(content, tmp_path, **options)
    assert equal_weights(imported.potential, potential)
    assert any(note.startswith("scale factors: ") and "state dict" not in note for note in imported.notes)


def test_the_name_in_the_scale_file_of_gemnet_xl(tmp_path: Path) -> None:
    potential, content = container(tmp_path, "XL")
    scales = old_names(scales_of(content["state_dict"]))
    content["scale_dict"] = {key.replace("AtomUpdate", "IntBlock"): value for key, value in scales.items()}
    content["state_dict"] = without_scales(content["state_dict"])
    content["config"]["model"] |= {"name": "gp_gemnet_t", "scatter_atoms": True, "scale_num_blocks": False}
    assert equal_weights(read(content, tmp_path).potential, potential)


def test_an_option_of_gemnet_xl_that_divides_its_outputs_is_refused(tmp_path: Path) -> None:
    _, content = container(tmp_path, "XL")
    content["config"]["model"] |= {"name": "gp_gemnet_t", "scale_num_blocks": True}
    with pytest.raises(CheckpointError, match=r"scale_num_blocks .* num_blocks \+ 1; divide the weights"):
        read(content, tmp_path)


def test_factors_stored_as_zero_are_taken_from_elsewhere_and_else_act_as_one(tmp_path: Path) -> None:
    potential, content = container(tmp_path, "OC")
    scales = scales_of(content["state_dict"])
    zeros = {f"{key}.scale_factor": torch.tensor(0.0) for key in scales}
    content["state_dict"] |= zeros
    imported = read(content, tmp_path)
    assert any("not fitted and act as 1" in note for note in imported.notes)
    state = imported.potential.state_dict()
    assert all(float(value) == 1 for key, value in state.items() if key.endswith(".factor"))
    assert equal_weights(read(content | {"scale_dict": scales}, tmp_path).potential, potential)


def test_missing_scale_factors_are_an_error_unless_there_never_were_any(tmp_path: Path) -> None:
    _, content = container(tmp_path)
    n_scales = len(scales_of(content["state_dict"]))
    content["state_dict"] = without_scales(content["state_dict"])
    content["config"]["model"]["scale_file"] = "configs/scales.json"
    with pytest.raises(
        CheckpointError, match=rf"has none of its {n_scales} scale .*configs/scales\.json.*--scale-file none"
    ):
        read(content, tmp_path)
    imported = read(content, tmp_path, scale_file="none")
    assert any(f"{n_scales} are taken as never fitted" in note for note in imported.notes)


def test_scale_factors_that_disagree_are_refused_and_foreign_ones_are_named(tmp_path: Path) -> None:
    _, content = container(tmp_path)
    scales = scales_of(content["state_dict"])
    name = next(iter(scales))
    with pytest.raises(
        CheckpointError, match=f"the scale factor {name} is .* in its state dict but .* in scale_dict"
    ):
        read(content | {"scale_dict": scales | {name: 7.0}}, tmp_path)
    with pytest.raises(CheckpointError, match="not a number"):
        read(content | {"scale_dict": {name: "seven"}}, tmp_path)
    imported = read(content | {"scale_dict": scales | {"QuadInteraction_1_had_rbf": 2.0}}, tmp_path)
    assert any("QuadInteraction_1_had_rbf" in note for note in imported.notes)


def test_a_backbone_with_heads(tmp_path: Path) -> None:
    potential, content = container(tmp_path, "OC")
    model = content["config"]["model"]
    model.pop("name")
    heads = {"out_mlp_E": "energy", "out_energy": "energy", "out_mlp_F": "forces", "out_forces": "forces"}
    state = {}
    for key, value in content["state_dict"].items():
        head = heads.get(key.split(".")[0])
        state[f"output_heads.{head}.{key}" if head else f"backbone.{key}"] = value
    layers = model.pop("num_global_out_layers")
    content["state_dict"] = state
    content["config"]["model"] = {
        "name": "hydra",
        "backbone": {"model": "gemnet_oc_backbone", **model},
        "heads": {
            "energy": {"module": "gemnet_oc_energy_and_grad_force_head", "num_global_out_layers": layers},
            "forces": {"module": "gemnet_oc_force_head", "num_global_out_layers": layers},
        },
    }
    assert equal_weights(read(content, tmp_path).potential, potential)
    content["config"]["model"]["heads"]["forces"]["num_global_out_layers"] = layers + 1
    with pytest.raises(CheckpointError, match="disagree about num_global_out_layers"):
        read(content, tmp_path)


@pytest.mark.parametrize("use_pbc", [False, None])
def test_a_model_without_periodic_images_says_so(
    use_pbc: bool | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, content = container(tmp_path)
    said = "use_pbc: false, .* systems whose pbc is false"
    assert not any(re.search(said, note) for note in read(content, tmp_path).notes)
    content["config"]["model"]["use_pbc"] = use_pbc
    assert any(re.search(said, note) for note in read(content, tmp_path).notes)
    assert re.search(said, caplog.text)


def test_bare_weights_take_their_settings_from_a_file(tmp_path: Path) -> None:
    potential, content = container(tmp_path)
    state = content["state_dict"]
    with pytest.raises(RequestError, match="--config"):
        read(state, tmp_path)
    new, old = tmp_path / "new.yml", tmp_path / "old.yml"
    model = dict(content["config"]["model"])
    transforms = {
        "normalizer": {"energy": {"mean": -0.5, "stdev": 2.0}, "forces": {"mean": 0.0, "stdev": 2.0}}
    }
    new.write_text(yaml.safe_dump({"model": model, "dataset": {"train": {"transforms": transforms}}}))
    old.write_text(yaml.safe_dump({"model": model.pop("name"), "model_attributes": model}))
    imported = read(state, tmp_path, config_file=new)
    assert equal_weights(imported.potential, potential)
    assert imported.potential.normalization == Normalization(energy_mean=-0.5, energy_std=2.0, forces_std=2.0)
    assert equal_weights(read(state, tmp_path, config_file=old).potential, potential)
    (tmp_path / "file_kwargs.json").write_text(json.dumps(model))
    assert equal_weights(read(state, tmp_path).potential, potential)


def test_a_folder_holds_weights_and_arguments(tmp_path: Path) -> None:
    potential = random_potential(MODELS["original T"])
    export_released(potential, tmp_path / "model.pth")
    assert equal_weights(import_released(tmp_path).potential, potential)
    (tmp_path / "model_kwargs.json").rename(tmp_path / "kwargs.json")
    (tmp_path / "model.pth").rename(tmp_path / "state_dict.pt")
    assert equal_weights(import_released(tmp_path).potential, potential)
    (tmp_path / "state_dict.pt").rename(tmp_path / "a.pt")
    assert equal_weights(import_released(tmp_path).potential, potential)
    (tmp_path / "b.pt").write_bytes(b"")
    with pytest.raises(RequestError, match="has 2; name the file itself"):
        import_released(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_dict": {}}, "holds no weights"),
        ({"state_dict": [1]}, "holds no weights"),
        ({"state_dict": {"a": 3}}, "'a' of its state dict is a int"),
        (
            {"state_dict": {"a": torch.zeros(1), "module.a": torch.zeros(1)}},
            "two keys of its state dict mean a",
        ),
        ({"config": {"model": {"num_blocks": 3}}}, "names no model"),
        ({"config": {"model": {"name": "schnet"}}}, "'schnet', which is no GemNet"),
        ({"config": {"model": {"name": "hydra"}}}, "has no config.model.backbone"),
        ({"config": {"model": "gemnet_t"}}, "the settings of its model lack"),
    ],
)
def test_a_file_of_another_kind_is_told_in_one_sentence(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    _, content = container(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(content | changes, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_blocks": 0}, "settings of its model are wrong: n_blocks"),
        ({"rbf": "gaussian"}, "another form"),
        ({"num_blocks": 3}, r"missing \['blocks\.2"),
        ({"emb_size_atom": 13}, "but the model needs"),
    ],
)
def test_settings_that_are_wrong_or_belong_to_other_weights(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    _, content = container(tmp_path)
    content["config"]["model"] |= changes
    with pytest.raises(CheckpointError, match=message):
        read(content, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("emb_size_cbf", 3), ("emb_size_quad_in", 9), ("emb_size_rbf", 5)]
)
def test_settings_of_gemnet_oc_that_do_not_explain_its_weights(key: str, value: int, tmp_path: Path) -> None:
    _, content = container(tmp_path, "OC")
    content["config"]["model"][key] = value
    with pytest.raises(CheckpointError, match=r"wrong shapes \['") as caught:
        read(content, tmp_path)
    assert "unused keys none; missing none" in str(caught.value)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    _, content = container(tmp_path)
    content["state_dict"]["atom_emb.embeddings.weight"][3, 3] = float("nan")
    with pytest.raises(CheckpointError, match=r"not finite: atom_embedding\.weight"):
        read(content, tmp_path)


def test_a_file_that_is_no_dictionary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a list, not a dictionary"):
        read([1, 2], tmp_path)


def test_weights_that_are_left_over_and_missing_are_both_listed(tmp_path: Path) -> None:
    _, content = container(tmp_path)
    state = content["state_dict"]
    state["int_blocks.0.dense_xx.weight"] = state.pop("int_blocks.0.dense_ca.linear.weight")
    with pytest.raises(
        CheckpointError, match=r"unused keys \['int_blocks.0.dense_xx.weight'\]; missing .*dense_ca"
    ):
        read(content, tmp_path)


@pytest.mark.parametrize("part", ["config", "optimizer", "state_dict", "ema", "normalizers"])
def test_a_hostile_object_deep_inside_a_container_is_refused_and_not_run(part: str, tmp_path: Path) -> None:
    potential, content = container(tmp_path)
    trained(content, potential)
    witness = tmp_path / "witness"
    content.setdefault("optimizer", {"state": {}})
    content[part]["deep"] = [{"x": (Calls(os.system, f"touch {witness}"),)}]
    with pytest.raises(CheckpointError, match="refused and nothing in it was run"):
        read(content, tmp_path)
    assert not witness.exists()


def test_a_hostile_scale_file_and_hostile_settings_are_refused_and_not_run(tmp_path: Path) -> None:
    _, content = container(tmp_path)
    witness = tmp_path / "witness"
    torch.save({"a": Calls(os.system, f"touch {witness}")}, tmp_path / "scales.pt")
    with pytest.raises(CheckpointError, match=r"scales\.pt is refused"):
        read(content, tmp_path, scale_file=str(tmp_path / "scales.pt"))
    hostile = tmp_path / "hostile.yml"
    hostile.write_text(f"model: !!python/object/apply:os.system ['touch {witness}']\n")
    with pytest.raises(RequestError, match=r"hostile\.yml cannot be read"):
        read(content, tmp_path, config_file=hostile)
    assert not witness.exists()


def test_a_scale_file_that_leaves_some_out_is_told(tmp_path: Path) -> None:
    _, content = container(tmp_path)
    scales = scales_of(content["state_dict"])
    name = next(iter(scales))
    del scales[name]
    content["state_dict"] = without_scales(content["state_dict"])
    with pytest.raises(CheckpointError, match=rf"missing \[.*{name}"):
        read(content | {"scale_dict": scales}, tmp_path)
