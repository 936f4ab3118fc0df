"""From the data section of a configuration to data sets."""

from dataclasses import dataclass

from ocpgem.data.dataset import Dataset, Subset
from ocpgem.data.labels import Relabelled, read_system_references
from ocpgem.data.mixture import Mixture
from ocpgem.data.open import open_dataset
from ocpgem.data.subset import Indices, first_records, random_records, records_of_file
from ocpgem.graph.spec import GraphSpec
from ocpgem.train.config import DataSection, TrainConfig
from ocpgem.train.data_section import DataSetSection, SubsetSection


@dataclass(frozen=True)
class DataSets:
    """The data sets of a run as its configuration names them.

    train: with their weights, before they are joined; val: by name.
    """

    train: list[Dataset]
    weights: list[float]
    val: dict[str, Dataset]

    @property
    def training_set(self) -> Dataset:
        """The data set to train on; several are joined, and drawn by their weights."""
        if len(self.train) == 1 and self.weights == [1]:
            return self.train[0]
        return Mixture(self.train, self.weights)

    @property
    def named(self) -> dict[str, Dataset]:
        """Every set by what messages and files call it: `train` (or `train[0]`, `train[1]`, ...) and `val.NAME`."""
        several = len(self.train) > 1
        train = {f"train[{i}]" if several else "train": dataset for i, dataset in enumerate(self.train)}
        return train | {f"val.{name}": dataset for name, dataset in self.val.items()}

    def replaced(self, named: dict[str, Dataset]) -> "DataSets":
        """The same sets with others in their places, called as in `named`."""
        found = list(named.values())
        n_train = len(self.train)
        return DataSets(found[:n_train], self.weights, dict(zip(self.val, found[n_train:], strict=True)))


def open_data_sets(data: DataSection, graph: GraphSpec | None = None) -> DataSets:
    """Every data set; raises RequestError or DataError for what is missing or cannot be used.

    graph: that of the model, where edges that are stored beside the data sets are to be read (`edges_to_read`).
    """
    train = open_training_sets(data, graph)
    return DataSets(train.train, train.weights, open_validation_sets(data, graph))


def edges_to_read(config: TrainConfig) -> GraphSpec | None:
    """The graph whose stored edges a run reads, None where it searches them."""
    return config.model.graph_spec if config.data.stored_edges else None


def open_training_sets(data: DataSection, graph: GraphSpec | None = None) -> DataSets:
    """The data sets to train on alone, unusable records included."""
    entries = data.train_sets
    return DataSets([open_entry(entry, graph) for entry in entries], [entry.weight for entry in entries], {})


def open_training_set(data: DataSection, graph: GraphSpec | None = None) -> Dataset:
    """The data set to train on, unusable records included."""
    return open_training_sets(data, graph).training_set


def open_validation_sets(data: DataSection, graph: GraphSpec | None = None) -> dict[str, Dataset]:
    """The data sets to validate on, by name, unusable records included."""
    return {name: open_entry(entry, graph) for name, entry in data.val_sets.items()}


def open_entry(entry: DataSetSection, graph: GraphSpec | None = None) -> Dataset:
    """One data set as its entry describes it."""
    dataset = open_dataset(entry.path)
    if graph is not None:
        dataset.use_stored_edges(graph)
    if entry.subset is not None:
        dataset = Subset(dataset, _chosen(entry.subset, dataset, entry.path))
    if entry.energy == "relaxed" or entry.add_references is not None:
        references = read_system_references(entry.add_references) if entry.add_references else None
        dataset = Relabelled(dataset, entry.energy == "relaxed", references)
    return dataset


def describe_sets(data: DataSection, train_set: Dataset, seed: int) -> list[str]:
    """One line for each of several training sets: its systems, its draws in an epoch and their share."""
    draws = train_set.draws(seed)
    if draws is None:
        return []
    return [
        f"  {entry.path}: {count:,} systems, weight {entry.weight:g}, {n_draws:,} draws an epoch "
        f"({n_draws / draws.per_epoch:.1%})"
        for entry, count, n_draws in zip(data.train_sets, draws.counts, draws.of_sets, strict=True)
    ]


def _chosen(subset: SubsetSection, dataset: Dataset, where: str) -> Indices:
    if subset.first is not None:
        return first_records(len(dataset), subset.first, where)
    if subset.fraction is not None:
        return random_records(len(dataset), subset.fraction, subset.seed)
    assert subset.indices is not None
    return records_of_file(subset.indices, len(dataset), where)
