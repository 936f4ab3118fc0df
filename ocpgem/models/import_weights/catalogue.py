"""The released GemNet checkpoints: where they are, what they were trained on, what was published about them.

Metrics are those of the released documentation, on the validation set of the training distribution. No checksum was
ever published; `sha256` is there for the day one is known.
"""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocpgem.download import Progress, download
from ocpgem.errors import RequestError
from ocpgem.files import write_text

_OCP = "https://dl.fbaipublicfiles.com/opencatalystproject/models/"
_DAC = "https://dl.fbaipublicfiles.com/dac/checkpoints_20231018/"
_ORIGINAL = "https://github.com/TUM-DAML/gemnet_pytorch/raw/master/pretrained/"
_SCALES = "https://github.com/FAIR-Chem/fairchem/raw/481f3a5a92dc787384ddae9fe3f50f5d932712fd/configs/s2ef/all/gemnet/"

_OC20, _OC22, _ODAC = "OC20 adsorption energies", "DFT total energies", "ODAC23 adsorption energies"


@dataclass(frozen=True)
class Released:
    """One released checkpoint."""

    name: str
    url: str
    training_set: str
    target: str
    """What its energies are."""
    config: str
    """Our configuration of the same model and training."""
    model: dict[str, Any]
    """Our configuration of the model."""
    force_mae: float | None = None
    """eV/A."""
    energy_mae: float | None = None
    """eV."""
    efwt: float | None = None
    """Share of systems with energy and forces within the threshold, in percent."""
    scale_file: str | None = None
    """Where the scale factors are published apart from the checkpoint, in case it lacks them."""
    kwargs: dict[str, Any] | None = None
    """Arguments of the released constructor, for files that hold bare weights."""
    sha256: str | None = None
    note: str = ""

    @property
    def metrics(self) -> list[str]:
        """The published metrics with their units."""
        return [
            text
            for value, text in (
                (self.force_mae, f"force MAE {self.force_mae} eV/A"),
                (self.energy_mae, f"energy MAE {self.energy_mae} eV"),
                (self.efwt, f"EFwT {self.efwt} %"),
            )
            if value is not None
        ]


def find(name: str) -> Released:
    """The entry called `name`, in any case; raises RequestError with the nearest names."""
    by_name = {entry.name.lower(): entry for entry in CATALOGUE}
    wanted = name.lower().replace("->", "-to-")
    if wanted in by_name:
        return by_name[wanted]
    near = [by_name[key].name for key in difflib.get_close_matches(wanted, by_name, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else "--list shows all"
    raise RequestError(f"no released checkpoint is called {name!r}; {hint}")


def fetch(entry: Released, path: Path, progress: Progress) -> list[str]:
    """Download a checkpoint to `path`; returns what is there now. Raises RequestError, DownloadError."""
    done = download(entry.url, path, entry.sha256, progress)
    checked = "as published" if entry.sha256 else "none was published, so it could not be verified"
    notes = [f"{path}: {done.size} bytes, sha256 {done.sha256} ({checked})"]
    if entry.kwargs is not None:
        arguments = path.with_name(f"{path.stem}_kwargs.json")
        write_text(arguments, json.dumps(entry.kwargs, indent=4) + "\n")
        notes.append(f"{arguments}: the settings, which the file itself lacks")
    return notes


def describe(entry: Released) -> str:
    """What is known of one checkpoint, in a few lines."""
    lines = [
        entry.name,
        f"  trained on {entry.training_set}; {entry.target}",
        f"  validation: {', '.join(entry.metrics) or 'no metrics published'}",
        f"  configuration: {entry.config}",
        f"  {entry.url}",
    ]
    if entry.scale_file is not None:
        lines.append(f"  scale factors, should the file lack them: {entry.scale_file}")
    lines.append(f"  sha256: {entry.sha256 or 'none published, so a download cannot be verified'}")
    if entry.note:
        lines.append(f"  {entry.note}")
    return "\n".join(lines)


def _odac(cutoff: float, **changes: Any) -> dict[str, Any]:
    graph = {"cutoff": cutoff}
    return {
        "variant": "gemnet_OC",
        "n_elements": 100,
        "neighbors": graph,
        "quadruplets": {**graph, "tags": None},
        "atom_edge": graph,
        "atom_atom": graph,
        **changes,
    }


def _original(triplets_only: bool) -> dict[str, Any]:
    """The arguments published with the two original models."""
    return {
        "num_spherical": 7,
        "num_radial": 6,
        "num_blocks": 4,
        "emb_size_atom": 128,
        "emb_size_edge": 128,
        "emb_size_trip": 64,
        "emb_size_quad": 32,
        "emb_size_rbf": 16,
        "emb_size_cbf": 16,
        "emb_size_sbf": 32,
        "emb_size_bil_trip": 64,
        "emb_size_bil_quad": 32,
        "num_before_skip": 1,
        "num_after_skip": 1,
        "num_concat": 1,
        "num_atom": 2,
        "triplets_only": triplets_only,
        "num_targets": 1,
        "direct_forces": False,
        "cutoff": 5.0,
        "int_cutoff": 10.0,
        "envelope_exponent": 5,
        "extensive": True,
        "forces_coupled": False,
        "output_init": "HeOrthogonal",
        "activation": "swish",
    }


_DT, _OC = {"variant": "gemnet_dT"}, {"variant": "gemnet_OC"}
_OC_SCALES = _SCALES + "scaling_factors/gemnet-oc.pt"
_UNSTATED = "training set and metrics are not stated in the repository; the settings are those used for COLL"

CATALOGUE: tuple[Released, ...] = (
    Released(
        name="GemNet-dT-S2EF-OC20-2M",
        url=_OCP + "2021_12/s2ef/gemnet_t_direct_h512_2M.pt",
        training_set="OC20 S2EF 2M",
        target=_OC20,
        config="configs/s2ef/2M/gemnet_dT.yml",
        model=_DT,
        force_mae=0.0257,
        efwt=1.10,
    ),
    Released(
        name="GemNet-dT-S2EF-OC20-All",
        url=_OCP + "2021_08/s2ef/gemnet_t_direct_h512_all.pt",
        training_set="OC20 S2EF All",
        target=_OC20,
        config="configs/s2ef/all/gemnet_dT.yml",
        model=_DT,
        force_mae=0.0211,
        efwt=2.21,
    ),
    Released(
        name="GemNet-OC-S2EF-OC20-2M",
        url=_OCP + "2022_07/s2ef/gemnet_oc_base_s2ef_2M.pt",
        training_set="OC20 S2EF 2M",
        target=_OC20,
        config="configs/s2ef/2M/gemnet_OC.yml",
        model=_OC,
        force_mae=0.0225,
        energy_mae=0.2299,
        efwt=2.12,
        scale_file=_OC_SCALES,
    ),
    Released(
        name="GemNet-OC-S2EF-OC20-All",
        url=_OCP + "2022_07/s2ef/gemnet_oc_base_s2ef_all.pt",
        training_set="OC20 S2EF All",
        target=_OC20,
        config="configs/s2ef/all/gemnet_OC.yml",
        model=_OC,
        force_mae=0.0179,
        energy_mae=0.1668,
        efwt=4.56,
        scale_file=_OC_SCALES,
    ),
    Released(
        name="GemNet-OC-S2EF-OC20-All+MD",
        url=_OCP + "2023_03/s2ef/gemnet_oc_base_s2ef_all_md.pt",
        training_set="OC20 S2EF All and MD",
        target=_OC20,
        config="configs/s2ef/all/gemnet_OC_md.yml",
        model=_OC,
        force_mae=0.0173,
        efwt=4.72,
        scale_file=_OC_SCALES,
    ),
    Released(
        name="GemNet-OC-Large-S2EF-OC20-All+MD",
        url=_OCP + "2022_07/s2ef/gemnet_oc_large_s2ef_all_md.pt",
        training_set="OC20 S2EF All and MD",
        target=_OC20,
        config="configs/s2ef/all/gemnet_OC_large.yml",
        model={"variant": "gemnet_OC_large"},
        force_mae=0.0164,
        energy_mae=0.1665,
        efwt=5.34,
        scale_file=_SCALES + "scaling_factors/gemnet-oc-large.pt",
    ),
    Released(
        name="GemNet-dT-S2EFS-OC22",
        url=_OCP + "2022_09/oc22/s2ef/gndt_oc22_all_s2ef.pt",
        training_set="OC22 S2EF",
        target=_OC22,
        config="configs/oc22/s2ef/gemnet_dT.yml",
        model=_DT,
        force_mae=0.032,
        energy_mae=1.127,
    ),
    Released(
        name="GemNet-OC-S2EFS-OC22",
        url=_OCP + "2022_09/oc22/s2ef/gnoc_oc22_all_s2ef.pt",
        training_set="OC22 S2EF",
        target=_OC22,
        config="configs/oc22/s2ef/gemnet_OC.yml",
        model=_OC,
        force_mae=0.030,
        energy_mae=0.563,
    ),
    Released(
        name="GemNet-OC-S2EFS-OC20+OC22",
        url=_OCP + "2022_09/oc22/s2ef/gnoc_oc22_oc20_all_s2ef.pt",
        training_set="OC20 S2EF (total energies) and OC22 S2EF",
        target=_OC22,
        config="configs/oc22/s2ef/gemnet_OC_oc20.yml",
        model=_OC,
        force_mae=0.027,
        energy_mae=0.483,
    ),
    Released(
        name="GemNet-OC-S2EFS-nsn-OC20+OC22",
        url=_OCP + "2023_05/oc22/s2ef/gnoc_oc22_oc20_all_s2ef.pt",
        training_set="OC20 S2EF (total energies) and OC22 S2EF",
        target=_OC22,
        config="configs/oc22/s2ef/gemnet_OC_oc20_nsn.yml",
        model=_OC | {"neighbors": {"strict": False}},
        force_mae=0.027,
        energy_mae=0.458,
        note="neighbours are not limited strictly: those 0.01 A beyond the limit count, too",
    ),
    Released(
        name="GemNet-OC-S2EFS-OC20-to-OC22",
        url=_OCP + "2022_09/oc22/s2ef/gnoc_finetune_all_s2ef.pt",
        training_set="OC20 S2EF, then OC22 S2EF",
        target=_OC22,
        config="configs/oc22/s2ef/gemnet_OC_finetune.yml",
        model=_OC,
        force_mae=0.030,
        energy_mae=0.417,
    ),
    Released(
        name="GemNet-OC-S2EF-ODAC",
        url=_DAC + "Gemnet-OC.pt",
        training_set="ODAC23 S2EF",
        target=_ODAC,
        config="configs/odac/s2ef/gemnet_OC.yml",
        model=_odac(8.0),
    ),
    Released(
        name="GemNet-OC-IS2RE-ODAC",
        url=_DAC + "Gemnet-OC_Direct.pt",
        training_set="ODAC23 IS2RE",
        target=_ODAC + " of the relaxed structure",
        config="configs/odac/is2re/gemnet_OC.yml",
        model=_odac(12.0, forces="none"),
        note="users report that its scale factors were not fitted (fairchem issue 892); see --scale-file none",
    ),
    Released(
        name="GemNet-Q",
        url=_ORIGINAL + "GemNet-Q/model.pth",
        training_set="molecules",
        target="energies in eV as the original code gives them",
        config="configs/molecules/coll/gemnet_Q.yml",
        model={"variant": "gemnet_Q"},
        kwargs=_original(triplets_only=False),
        note=_UNSTATED,
    ),
    Released(
        name="GemNet-T",
        url=_ORIGINAL + "GemNet-T/model.pth",
        training_set="molecules",
        target="energies in eV as the original code gives them",
        config="configs/molecules/coll/gemnet_T.yml",
        model={
            "variant": "gemnet_T",
            "n_blocks": 4,
            "atom_dim": 128,
            "edge_dim": 128,
            "n_elements": 93,
            "radial_basis": {"name": "spherical_bessel", "n_radial": 6},
            "angular_basis": {"radial": "bessel_by_degree", "two_angle": "spherical_harmonics"},
            "neighbors": {"cutoff": 5.0, "max_neighbors": 0},
            "layers": {"after_skip": 1, "atom": 2},
            "force_radial": "before_layers",
        },
        kwargs=_original(triplets_only=True),
        note=_UNSTATED,
    ),
)
"""All released GemNet checkpoints. For GemNet-XL and for IS2RE on OC22 only configurations were published."""
