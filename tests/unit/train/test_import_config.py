"""Configurations of fairchem v1 / OCP: what carries over does, and everything else is said."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ocpgem.config import load_config
from ocpgem.data.lmdb_store import write_dataset
from ocpgem.errors import ConfigError
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.train.config import TrainConfig
from ocpgem.train.import_config import import_config
from tests.tiny_runs import ROOT, random_systems
from tests.v1_configs import DT, MEAN, NEW, OC, OLD, OPTIM, TRAIN_SET, changed, without


class Translated:
    """A translation: the configuration that it loads to, and what was said about it."""

    def __init__(self, folder: Path, settings: dict[str, Any], gpus: int = 1) -> None:
        source = folder / "old.yml"
        source.write_text(yaml.safe_dump(settings))
        self.imported = import_config(source, gpus)
        self.comments = " ".join(
            line.removeprefix("#").strip() for line in self.imported.text.splitlines() if line.startswith("#")
        )
        self.file = folder / "new.yml"
        self.file.write_text(self.imported.text)

    @property
    def config(self) -> TrainConfig:
        return load_config(self.file, [], TrainConfig)


def test_the_old_layout_becomes_our_published_configuration(tmp_path: Path) -> None:
    done = Translated(tmp_path, OLD, gpus=8)
    assert done.imported.mistakes is None
    published = load_config(ROOT / "configs/s2ef/2M/gemnet_dT.yml", [], TrainConfig)
    assert done.config.model == published.model
    assert done.config.normalization == published.normalization
    # The old file names no weight of the energy, which is 1 then; the published 2M runs have 2.
    assert done.config.loss == published.loss.model_copy(update={"energy": 1.0})
    assert done.config.optim == published.optim
    assert done.config.validation == published.validation
    assert done.config.data.batch_size == published.data.batch_size == 256
    assert done.config.data.train == "data/s2ef/2M/train/"
    assert done.config.data.val == {"val": "data/s2ef/all/val_id"}
    assert (done.config.data.eval_batch_size, done.config.data.workers) == (16, 2)
    assert done.config.steps == 80 * 7813
    for said in (
        "optim.batch_size: was 32 per GPU",
        "optim.weight_decay: is 0.01, on which v1 acted",
        "model.scale_file: is not read",
        "model.otf_graph: edges are always computed",
        "logger: metrics go to metrics.jsonl",
        "dataset.2.src: a run has no test set",
        "trainer: there is one",
        "80 epochs of 2,000,000 systems",
    ):
        assert said in done.comments
    assert "Not known" not in done.comments


def test_the_new_layout_becomes_the_same_settings_under_our_names(tmp_path: Path) -> None:
    done = Translated(tmp_path, NEW)
    assert done.imported.mistakes is None
    assert done.config.model == GemNetConfig.model_validate({"variant": "gemnet_OC"})
    assert done.config.normalization.model_dump()["energy_mean"] == MEAN  # type: ignore[union-attr]
    assert (done.config.loss.energy, done.config.loss.forces) == (2, 100)
    assert done.config.optim.weight_decay == 0
    assert done.config.optim.schedule.name == "cosine"
    assert done.config.optim.schedule.final_factor == 0.02
    assert done.config.optim.schedule.warmup_steps == 62_500
    assert (done.config.steps, done.config.validation.every_steps) == (250_000, 1000)
    assert done.config.checkpoint.every_steps == 200
    for said in (
        "load_balancing: ranks are always balanced",
        "warmup_factor: the warm-up rises",
        "key_mapping",
    ):
        assert said in done.comments
    assert "Not known" not in done.comments


def test_a_model_of_backbone_and_heads_is_the_same_model(tmp_path: Path) -> None:
    backbone = {key: value for key, value in OC.items() if key != "num_global_out_layers"}
    model = {
        "name": "hydra",
        "backbone": {"model": "gemnet_oc_backbone"} | backbone,
        "heads": {
            "energy": {"module": "gemnet_oc_energy_and_grad_force_head", "num_global_out_layers": 2},
            "forces": {"module": "gemnet_oc_force_head", "num_global_out_layers": 2},
        },
        "pass_through_head_outputs": True,
    }
    done = Translated(tmp_path, changed(NEW, "model", model))
    assert done.config.model == GemNetConfig.model_validate({"variant": "gemnet_OC"})
    assert "model.pass_through_head_outputs: has no counterpart" in done.comments


def test_a_model_named_beside_its_attributes_is_the_same_model(tmp_path: Path) -> None:
    named = changed(changed(OLD, "model", "gemnet_t"), "model_attributes", DT)
    assert Translated(tmp_path, named).config == Translated(tmp_path, OLD).config


def test_gemnet_xl_is_a_gemnet_of_its_sizes(tmp_path: Path) -> None:
    sizes = {"num_blocks": 6, "emb_size_atom": 128, "emb_size_edge": 1536, "emb_size_trip": 384}
    model = DT | sizes | {"emb_size_bil_trip": 192, "name": "gp_gemnet_t", "scatter_atoms": True}
    done = Translated(tmp_path, changed(OLD, "model", model))
    xl = GemNetConfig.model_validate({"variant": "gemnet_XL"})
    assert done.config.model.model_dump() == xl.model_dump() | {"variant": "gemnet_dT"}


def test_a_switch_may_say_no(tmp_path: Path) -> None:
    text = yaml.safe_dump(changed(OLD, "model.direct_forces", "SWITCH")).replace("SWITCH", "no")
    (tmp_path / "old.yml").write_text(text)
    assert "variant: gemnet_T\n" in import_config(tmp_path / "old.yml").text


def test_milestones_and_warm_up_carry_over(tmp_path: Path) -> None:
    optim = without(OPTIM, "scheduler", "mode", "factor", "patience") | {
        "scheduler": "LambdaLR",
        "lr_gamma": 0.8,
        "lr_milestones": [64000, 96000],
        "warmup_steps": 100,
    }
    schedule = Translated(tmp_path, changed(OLD, "optim", optim)).config.optim.schedule
    assert (schedule.name, schedule.milestones, schedule.gamma) == ("step", [64000, 96000], 0.8)
    assert schedule.warmup_steps == 100


def test_energies_only_are_trained_without_forces(tmp_path: Path) -> None:
    settings = changed(changed(OLD, "model.regress_forces", False), "model.direct_forces", False)
    done = Translated(tmp_path, changed(settings, "task.primary_metric", "energy_mae"))
    assert done.imported.mistakes is None
    assert done.config.model.forces == "none"
    assert done.config.loss.forces == 0
    assert done.config.validation.metric == "energy_mae"
    assert "the target is the relaxed energy" in done.comments


def test_what_v1_did_without_being_told_is_written_down(tmp_path: Path) -> None:
    bare = without(
        OLD, "optim.force_coefficient", "optim.clip_grad_norm", "optim.ema_decay", "optim.optimizer_params",
        "optim.eval_every", "task.train_on_free_atoms", "optim.scheduler", "optim.mode", "optim.factor",
        "optim.patience",
    )  # fmt: skip
    bare["dataset"][0]["normalize_labels"] = False
    done = Translated(tmp_path, bare)
    config = done.config
    assert config.loss.forces == 30
    assert config.optim.clip_norm == 1e6
    assert config.optim.ema_decay == 0
    assert not config.optim.amsgrad
    assert config.optim.schedule.name == "constant"
    assert config.validation.every_steps == 62_500
    assert config.normalization.model_dump()["energy_std"] == 1  # type: ignore[union-attr]
    for said in (
        "v1 then took 30",
        "clip_norm of 1e+06",
        "validated once an epoch",
        "fixed atoms never count",
        "not normalised",
    ):
        assert said in done.comments  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("optim.loss_force", "atomwisel2", "optim.loss_force: was atomwisel2; here it is always l2mae"),
        ("optim.optimizer", "Adam", "optim.optimizer: was Adam"),
        ("optim.scheduler", "ExponentialLR", "ExponentialLR does not exist here"),
        ("amp", True, "precision: bf16"),
        ("slurm", {"partition": "gpu"}, "how a job is started"),
        ("task.relax_opt", {"maxstep": 0.04}, "relaxations are not part of training"),
        ("task.primary_metric", "energy_force_within_threshold", "the best model is chosen by forces_mae"),
        ("dataset", [TRAIN_SET | {"lin_ref": "refs.npz"}], "normalization.element_references.file"),
        ("dataset", [TRAIN_SET | {"grad_target_mean": 0.1}], "was 0.1; forces are not shifted"),
    ],
)
def test_a_changed_meaning_is_said(tmp_path: Path, path: str, value: Any, said: str) -> None:
    done = Translated(tmp_path, changed(OLD, path, value))
    assert done.imported.mistakes is None
    assert said in done.comments


def test_unknown_settings_are_listed_with_their_line(tmp_path: Path) -> None:
    settings = changed(changed(OLD, "optim.mystery", [1, 2]), "wizardry", {"deep": {"er": True}})
    done = Translated(tmp_path, settings)
    listed = done.comments.partition("Not known, and so not translated:")[2]
    assert "- optim.mystery: [1, 2] (" in listed
    assert "- wizardry.deep.er: True (" in listed
    assert "old.yml line" in listed


def test_unknown_arguments_of_gemnet_oc_are_named_though_the_released_class_ignores_them(
    tmp_path: Path,
) -> None:
    assert "num_wheels" in Translated(tmp_path, changed(NEW, "model.num_wheels", 4)).comments


def test_every_setting_of_the_old_file_is_used_or_mentioned(tmp_path: Path) -> None:
    """Removing any setting changes the result or the comments: nothing is dropped without a word."""

    def leaves(tree: Any, path: str = "") -> list[str]:
        if not isinstance(tree, dict) or path == "model":
            return [path]
        return [
            leaf for key, value in tree.items() for leaf in leaves(value, f"{path}.{key}" if path else key)
        ]

    silent = {  # our default, or what v1 did without being told, is the same
        "optim.optimizer", "optim.loss_energy", "optim.loss_force", "optim.energy_coefficient", "task.primary_metric",
    }  # fmt: skip
    whole = Translated(tmp_path, OLD).imported.text
    for path in leaves({key: value for key, value in OLD.items() if key != "dataset"}):
        if path not in silent:
            assert Translated(tmp_path, without(OLD, path)).imported.text != whole, path


def test_epochs_are_counted_on_the_training_set_if_it_is_there(tmp_path: Path) -> None:
    write_dataset(tmp_path / "train", random_systems(11))
    settings = changed(OLD, "dataset", [TRAIN_SET | {"src": str(tmp_path / "train")}])
    settings = changed(changed(settings, "optim.batch_size", 2), "optim.max_epochs", 3)
    assert Translated(tmp_path, settings, gpus=2).config.steps == 9


def test_a_missing_training_set_leaves_steps_to_the_user(tmp_path: Path) -> None:
    done = Translated(tmp_path, changed(OLD, "dataset", [{"src": "no/such/folder"}]))
    assert done.imported.mistakes is not None
    assert "steps" in done.imported.mistakes
    assert "the training set is not here to be counted; add steps yourself" in done.comments


def test_a_file_without_model_or_data_says_what_is_missing(tmp_path: Path) -> None:
    done = Translated(tmp_path, {"optim": OPTIM})
    assert done.imported.mistakes is not None
    for missing in ("steps", "data.train", "model"):
        assert missing in done.imported.mistakes
    assert "model: the file names no model" in done.comments


def test_includes_are_found_from_the_folder_of_the_file_and_from_those_above(tmp_path: Path) -> None:
    deep = tmp_path / "configs" / "s2ef" / "2M" / "gemnet"
    deep.mkdir(parents=True)
    (deep.parent / "base.yml").write_text(yaml.safe_dump(without(OLD, "model", "optim")))
    (deep / "optim.yml").write_text(yaml.safe_dump({"optim": OPTIM | {"lr_initial": 0.1}}))
    run = {
        "includes": ["configs/s2ef/2M/base.yml", "optim.yml"],
        "model": OLD["model"],
        "optim": {"lr_initial": 0.0005},
    }
    (deep / "gemnet-dT.yml").write_text(yaml.safe_dump(run))
    whole = Translated(tmp_path, OLD).imported.text
    parts = import_config(deep / "gemnet-dT.yml").text
    assert [line for line in parts.splitlines() if line[0] != "#"] == [
        line for line in whole.splitlines() if line[0] != "#"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("includes: [gone.yml]", r"old.yml line 1: the included file gone.yml is found neither"),
        ("includes: [old.yml]", "includes a file that includes it again"),
        ("model: {name: schnet}", "'schnet', which is no GemNet"),
        ("model: {name: gemnet_t}", "model.num_blocks is missing"),
        ("optim: {batch_size: many}", "line 1: 'many' must be a number"),
        ("model: !!python/object/apply:os.system [true]", "tag"),
        ("[1, 2]", "a configuration is a map"),
    ],
)
def test_a_file_that_cannot_be_translated_is_refused_in_a_sentence(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "old.yml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        import_config(tmp_path / "old.yml")


def test_arguments_without_a_counterpart_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "old.yml").write_text(yaml.safe_dump(changed(OLD, "model.num_wings", 2)))
    with pytest.raises(ConfigError, match="num_wings"):
        import_config(tmp_path / "old.yml")


def test_references_are_translated(tmp_path: Path) -> None:
    train = TRAIN_SET | {"lin_ref": "refs.npz", "oc20_ref": "oc20_ref.pkl"}
    val = {"src": "data/val", "oc20_ref": "oc20_ref.pkl"}
    config = Translated(tmp_path, changed(OLD, "dataset", [train, val])).config
    assert config.normalization.element_references is not None
    assert config.normalization.element_references.file == "refs.npz"
    assert [entry.add_references for entry in config.data.train_sets] == ["oc20_ref.pkl"]
    assert config.data.val_sets["val"].add_references == "oc20_ref.pkl"


def test_a_model_without_forces_is_trained_on_relaxed_energies(tmp_path: Path) -> None:
    settings = changed(changed(OLD, "model.regress_forces", False), "model.direct_forces", False)
    settings = changed(settings, "task.primary_metric", "energy_mae")
    done = Translated(tmp_path, settings)
    assert [entry.energy for entry in done.config.data.train_sets] == ["relaxed"]
    assert all(entry.energy == "relaxed" for entry in done.config.data.val_sets.values())
    assert "the target is the relaxed energy" in done.comments
