"""All graphs of a topology: which edges each has, and tables that fit them."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from ase.build import add_adsorbate, bulk, fcc111

from ocpgem.data.transport import pack
from ocpgem.errors import DataError, RequestError
from ocpgem.graph import edges as edges_module
from ocpgem.graph.spec import GraphSpec, Limit
from ocpgem.graph.system_edges import system_edges
from ocpgem.graph.topology import (
    EdgeSet,
    SymmetricEdgeSet,
    Topology,
    TripletTable,
    build_topology,
    concat,
)
from tests.edge_lists import edge_rows, quadruplet_members, quadruplet_rows, unique_rows
from tests.unit.graph.brute_force import BruteForce

GRAPHS = ("main", "quadruplet", "atom_edge", "atom_atom")
OC = GraphSpec(
    cutoff=5.5,
    max_neighbors=14,
    self_images="positive",
    quadruplet=Limit(5.0, 5),
    quadruplet_tags=(1, 2),
    atom_edge=Limit(5.5, 9),
    atom_atom=Limit(6.0, 1000),
)


def slabs() -> list:
    slab = fcc111("Cu", (2, 2, 3), vacuum=7.0, periodic=True)
    add_adsorbate(slab, "O", 1.2, "fcc")
    slab.set_tags([0] * 8 + [1] * 4 + [2])
    untagged = bulk("Pt")
    tilted = fcc111("Al", (2, 1, 4), vacuum=5.0, periodic=True)
    tilted.set_tags([0] * 6 + [1] * 2)
    for seed, atoms in enumerate((slab, untagged, tilted)):
        atoms.rattle(0.1, seed=seed)
        atoms.pbc = True
    return [slab, untagged, tilted]


def topology_of(systems: list, spec: GraphSpec) -> Topology:
    return concat([system_edges(a.positions, a.cell.array, a.pbc, spec, a.get_tags()) for a in systems])


@pytest.fixture(scope="module")
def topology() -> Topology:
    return topology_of(slabs(), OC)


def edge_set(topology: Topology, name: str) -> EdgeSet:
    edges = getattr(topology, name)
    assert edges is not None
    return edges


def assert_same_tensors(one, other) -> None:
    assert type(one) is type(other)
    for field in dataclasses.fields(one) if one is not None else []:
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, torch.Tensor):
            assert mine.dtype == theirs.dtype == torch.int64, field.name
            assert torch.equal(mine, theirs), field.name
        elif dataclasses.is_dataclass(mine):
            assert_same_tensors(mine, theirs)
        else:
            assert mine == theirs, field.name


# Against explicit loops


SPECS = {
    "released": OC,
    "negative self images": dataclasses.replace(OC, self_images="negative"),
    "not strict": dataclasses.replace(OC, strict=False, atom_atom=Limit(6.0, 25)),
    "symmetric": dataclasses.replace(OC, truncation="symmetric", atom_atom=Limit(6.0, 25)),
    "no atom_atom": dataclasses.replace(OC, atom_atom=None),
    "wide middle edges": GraphSpec(4.5, 6, quadruplet=Limit(5.5, 7)),
}


def random_crystal(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One to four atoms in a skewed cell, most often smaller than the cutoff."""
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(3.0, 5.5, 3)) + np.tril(rng.uniform(-0.8, 0.8, (3, 3)), -1)
    n_atoms = 1 + seed % 4
    places = np.array(list(itertools.product((0.0, 0.5), repeat=3)))[rng.permutation(8)[:n_atoms]]
    frac = places + rng.uniform(-0.1, 0.1, (n_atoms, 3)) + rng.integers(-1, 2, (n_atoms, 3)) * (seed % 2)
    return frac @ cell, cell, rng.integers(0, 3, n_atoms)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("seed", range(6))
def test_graphs_and_quadruplets_are_those_of_explicit_loops(seed: int, spec: GraphSpec):
    pos, cell, tags = random_crystal(seed)
    topology = concat([system_edges(pos, cell, True, spec, tags)])
    expected = BruteForce(pos, cell, spec, tags)
    for name, edges in expected.graphs().items():
        assert unique_rows(edge_rows(edge_set(topology, name))) == set(edges), name
    quadruplets = expected.quadruplets()
    assert unique_rows(quadruplet_rows(topology)) == set(quadruplets)
    if topology.atom_edge is not None:
        assert topology.common is not None
        main, other = edge_rows(topology.main), edge_rows(topology.atom_edge)
        np.testing.assert_array_equal(main[topology.common.main], other[topology.common.atom_edge])
        shared = unique_rows(main) & unique_rows(other)
        assert unique_rows(main[topology.common.main]) == shared
        assert (topology.common.main.diff() > 0).all()


def test_small_codes_change_no_table(monkeypatch: pytest.MonkeyPatch, topology: Topology):
    monkeypatch.setattr(edges_module, "LARGEST_CODE", 1000)
    assert_same_tensors(topology_of(slabs(), OC), topology)


def test_the_limit_that_is_not_strict_adds_to_squares_in_the_search_and_to_distances_in_a_selection():
    pos = np.array([[0, 0, 0], [2.0, 0, 0], [0, 2.5, 0], [0, 0, 2.504], [0, -2.6, 0]])
    searched = GraphSpec(6.0, 1, strict=False, atom_edge=Limit(6.0, 1))
    selected = dataclasses.replace(searched, atom_atom=Limit(6.0, 0))
    kept = []
    for spec in (searched, selected):
        edges = edge_set(concat([system_edges(pos, np.eye(3), False, spec)]), "atom_edge")
        kept.append(edges.edge_index[0][edges.edge_index[1] == 0].tolist())
    assert kept == [[1, 2], [1, 2, 3]]


def test_a_pair_at_exactly_the_cutoff_of_a_narrower_graph_is_in_it():
    spec = GraphSpec(5.0, 0, atom_atom=Limit(6.0, 0))
    assert concat([system_edges([[0, 0, 0], [3.0, 4.0, 0]], np.eye(3), False, spec)]).main.n_edges == 2


def test_the_loops_meet_every_kind_of_exclusion():
    """Else the comparison above would show little."""
    pos, cell, tags = random_crystal(1)
    topology = concat([system_edges(pos, cell, True, SPECS["symmetric"], tags)])
    main, middle = topology.main, topology.quadruplet
    assert middle is not None
    assert topology.quadruplets is not None
    degree = main.edge_ptr.diff()
    assert len(topology.quadruplets.outer.slot) < int(degree[middle.edge_index[1]].sum())
    assert len(topology.quadruplets.inner.slot) < int(degree[middle.edge_index[0]].sum())
    assert len(topology.quadruplets.excluded_outer) > 0
    assert (main.edge_index[0] == main.edge_index[1]).any()


# Consistent indices


@pytest.mark.parametrize("name", GRAPHS)
def test_pointers_and_slots_fit_the_edges(topology: Topology, name: str):
    edges = edge_set(topology, name)
    source, target = edges.edge_index
    n_atoms = topology.n_atoms
    assert (target.diff() >= 0).all()
    assert torch.equal(edges.edge_ptr.diff(), torch.bincount(target, minlength=n_atoms))
    assert torch.equal(edges.source_ptr.diff(), torch.bincount(source, minlength=n_atoms))
    assert edges.edge_ptr[0] == edges.source_ptr[0] == 0
    assert torch.equal(source[edges.by_source], source.sort().values)
    assert torch.equal(edges.by_source.sort().values, torch.arange(edges.n_edges))
    assert edges.max_degree == int(edges.edge_ptr.diff().max())
    assert torch.equal(edges.slot // edges.max_degree, target)
    assert torch.equal(edges.slot % edges.max_degree, torch.arange(edges.n_edges) - edges.edge_ptr[target])
    assert torch.equal(topology.batch[source], topology.batch[target])
    assert torch.equal(
        torch.bincount(topology.batch[target], minlength=topology.n_systems), edges.n_edges_per_system
    )


@pytest.mark.parametrize("name", ["quadruplet", "atom_edge", "atom_atom"])
def test_edges_of_one_source_stay_in_order(topology: Topology, name: str):
    edges = edge_set(topology, name)
    key = edges.edge_index[0][edges.by_source] * edges.n_edges + edges.by_source
    assert (key.diff() > 0).all()


@pytest.mark.parametrize("truncation", ["released", "symmetric"])
def test_main_edges_find_their_reverse_and_by_it_their_source(truncation: str):
    spec = dataclasses.replace(OC, truncation=truncation)
    main = topology_of(slabs(), spec).main
    assert isinstance(main, SymmetricEdgeSet)
    rows = edge_rows(main)
    np.testing.assert_array_equal(rows[main.reverse_edge], rows[:, [1, 0, 2, 3, 4]] * [1, 1, -1, -1, -1])
    assert main.by_source is main.reverse_edge
    assert main.source_ptr is main.edge_ptr


@pytest.mark.parametrize("which", ["inner", "outer"])
def test_triplet_tables_are_sorted_and_their_pointers_and_slots_fit(topology: Topology, which: str):
    table: TripletTable = getattr(topology.quadruplets, which)
    middle = edge_set(topology, "quadruplet")
    n_rows, n_main = len(table.main_edge), topology.main.n_edges
    key = table.middle_edge * n_main + table.main_edge
    assert n_rows > 0
    assert (key.diff() > 0).all()
    end = 0 if which == "inner" else 1
    meeting = middle.edge_index[end][table.middle_edge]
    assert torch.equal(topology.main.edge_index[1][table.main_edge], meeting)

    per_middle = torch.bincount(table.middle_edge, minlength=middle.n_edges)
    assert table.max_per_middle == int(per_middle.max())
    assert torch.equal(table.slot // table.max_per_middle, table.middle_edge)
    rank = torch.arange(n_rows) - (per_middle.cumsum(0) - per_middle)[table.middle_edge]
    assert torch.equal(table.slot % table.max_per_middle, rank)

    per_main = torch.bincount(table.main_edge, minlength=n_main)
    assert torch.equal(table.main_ptr.diff(), per_main)
    assert table.main_ptr[0] == 0
    assert torch.equal(table.by_main, table.main_edge.argsort(stable=True))
    assert table.max_per_main == int(per_main.max())
    assert torch.equal(table.main_slot // table.max_per_main, table.main_edge)
    rank = torch.arange(n_rows) - table.main_ptr[table.main_edge[table.by_main]]
    assert torch.equal(table.main_slot[table.by_main] % table.max_per_main, rank)


def test_excluded_rows_share_their_middle_edge_and_close_a_loop(topology: Topology):
    quadruplets = topology.quadruplets
    assert quadruplets is not None
    assert topology.quadruplet is not None
    outer, inner = quadruplets.excluded_outer, quadruplets.excluded_inner
    assert len(outer) > 0
    assert (outer.diff() > 0).all()
    via = quadruplets.outer.middle_edge[outer]
    assert torch.equal(via, quadruplets.inner.middle_edge[inner])
    main, middle = edge_rows(topology.main), edge_rows(topology.quadruplet)
    to_a, to_b = main[quadruplets.outer.main_edge[outer]], main[quadruplets.inner.main_edge[inner]]
    np.testing.assert_array_equal(to_a[:, 0], to_b[:, 0])
    np.testing.assert_array_equal(to_a[:, 2:], to_b[:, 2:] + middle[via][:, 2:])


def test_a_batch_is_its_systems_one_after_another(topology: Topology):
    first: dict[str, int] = dict.fromkeys(("atom", "inner", "outer", "excluded", "common", *GRAPHS), 0)
    quadruplets, common = topology.quadruplets, topology.common
    assert quadruplets is not None
    assert common is not None
    for atoms in slabs():
        alone = topology_of([atoms], OC)
        assert alone.quadruplets is not None
        assert alone.common is not None
        for name in GRAPHS:
            mine = edge_rows(edge_set(alone, name))
            part = slice(first[name], first[name] + len(mine))
            shifted = mine + np.array([first["atom"], first["atom"], 0, 0, 0])
            np.testing.assert_array_equal(edge_rows(edge_set(topology, name))[part], shifted)
        for name in ("inner", "outer"):
            table, whole = getattr(alone.quadruplets, name), getattr(quadruplets, name)
            part = slice(first[name], first[name] + len(table.slot))
            assert torch.equal(whole.main_edge[part], table.main_edge + first["main"])
            assert torch.equal(whole.middle_edge[part], table.middle_edge + first["quadruplet"])
        part = slice(first["excluded"], first["excluded"] + len(alone.quadruplets.excluded_outer))
        for name in ("inner", "outer"):
            ours = getattr(alone.quadruplets, f"excluded_{name}") + first[name]
            assert torch.equal(getattr(quadruplets, f"excluded_{name}")[part], ours)
        first["excluded"] = part.stop
        part = slice(first["common"], first["common"] + len(alone.common.main))
        assert torch.equal(common.main[part], alone.common.main + first["main"])
        assert torch.equal(common.atom_edge[part], alone.common.atom_edge + first["atom_edge"])
        first["common"] = part.stop
        for name in ("inner", "outer"):
            first[name] += len(getattr(alone.quadruplets, name).slot)
        for name in GRAPHS:
            first[name] += edge_set(alone, name).n_edges
        first["atom"] += len(atoms)
    assert first["excluded"] == len(quadruplets.excluded_outer)
    assert first["common"] == len(common.main)


# Symmetric truncation


def tied_slab():
    """A perfect slab: every shell of neighbours is a tie."""
    slab = fcc111("Cu", (2, 2, 3), vacuum=7.0, periodic=True)
    add_adsorbate(slab, "O", 1.2, "fcc")
    slab.set_tags([0] * 8 + [1] * 4 + [2])
    slab.pbc = True
    return slab


SYMMETRIC = dataclasses.replace(OC, truncation="symmetric", atom_atom=Limit(6.0, 40))


@pytest.mark.parametrize("strict", [True, False])
def test_symmetric_truncation_does_not_depend_on_the_order_of_the_atoms(strict: bool):
    spec = dataclasses.replace(SYMMETRIC, strict=strict)
    slab = tied_slab()
    order = np.random.default_rng(0).permutation(len(slab))
    here, there = topology_of([slab], spec), topology_of([slab[order]], spec)
    for name in GRAPHS:
        rows = edge_rows(edge_set(there, name))
        rows[:, :2] = order[rows[:, :2]]
        assert unique_rows(rows) == unique_rows(edge_rows(edge_set(here, name))), name
    rows = quadruplet_rows(there)
    rows[:, [0, 1, 5, 9]] = order[rows[:, [0, 1, 5, 9]]]
    assert unique_rows(rows) == unique_rows(quadruplet_rows(here))


def test_released_truncation_does_depend_on_the_order_of_the_atoms():
    spec = dataclasses.replace(SYMMETRIC, truncation="released")
    slab = tied_slab()
    here, there = topology_of([slab], spec), topology_of([slab[::-1]], spec)
    rows = edge_rows(there.main)
    rows[:, :2] = len(slab) - 1 - rows[:, :2]
    assert unique_rows(rows) != unique_rows(edge_rows(here.main))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_symmetric_truncation_gives_a_doubled_cell_the_same_edges(axis: int, noise: float):
    slab = tied_slab()
    slab.rattle(noise, seed=4)
    n = len(slab)
    doubled = slab.repeat([2 if axis == i else 1 for i in range(3)])
    here, there = topology_of([slab], SYMMETRIC), topology_of([doubled], SYMMETRIC)

    def folded(rows: np.ndarray, atom: int, offset: int, against: np.ndarray) -> np.ndarray:
        """The atom of the small cell and the offset against the small cell of the target."""
        copy = rows[:, atom] // n
        shift = rows[:, offset : offset + 3].copy()
        shift[:, axis] = 2 * shift[:, axis] + copy - against // n
        return np.column_stack((rows[:, atom] % n, shift))

    for name in GRAPHS:
        rows = edge_rows(edge_set(there, name))
        source = folded(rows, 0, 2, rows[:, 1])
        once = np.column_stack((source[:, 0], rows[:, 1] % n, source[:, 1:]))
        for copy in (0, 1):
            mine = unique_rows(once[rows[:, 1] // n == copy])
            assert mine == unique_rows(edge_rows(edge_set(here, name))), name
    rows = quadruplet_rows(there)
    a = rows[:, 0]
    once = np.column_stack((a % n, *(folded(rows, atom, atom + 1, a) for atom in (1, 5, 9))))
    assert unique_rows(once[a < n]) == unique_rows(quadruplet_rows(here))


def test_symmetric_truncation_keeps_both_directions_of_what_either_end_keeps():
    pos = np.array([[0.0, 0, 0], [1.0, 0, 0], [3.0, 0, 0]])
    spec = GraphSpec(6.0, 1, truncation="symmetric")
    main = concat([system_edges(pos, np.eye(3), False, spec)]).main
    assert main.edge_index.tolist() == [[1, 0, 2, 1], [0, 1, 1, 2]]


def test_symmetric_truncation_keeps_all_ties():
    square = np.array([[0.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [1.0, 1.0, 0]])
    spec = GraphSpec(6.0, 1, truncation="symmetric", atom_edge=Limit(6.0, 1))
    topology = concat([system_edges(square, np.eye(3), False, spec)])
    assert topology.main.edge_ptr.diff().tolist() == [2, 2, 2, 2]
    assert edge_set(topology, "atom_edge").edge_ptr.diff().tolist() == [2, 2, 2, 2]


# Empty sets, missing parts, refusals


def test_a_system_without_tagged_atoms_has_no_quadruplets_and_harms_no_other():
    tagged, untagged, _ = slabs()
    with_it, without = topology_of([tagged, untagged], OC), topology_of([tagged], OC)
    assert edge_set(with_it, "quadruplet").n_edges_per_system.tolist()[1] == 0
    np.testing.assert_array_equal(quadruplet_members(with_it), quadruplet_members(without))


def test_a_batch_without_quadruplets_has_empty_tables_that_travel():
    topology = topology_of([slabs()[1]] * 2, OC)
    quadruplets = topology.quadruplets
    assert quadruplets is not None
    assert edge_set(topology, "quadruplet").n_edges == 0
    assert len(quadruplets.excluded_outer) == len(quadruplets.excluded_inner) == 0
    for table in (quadruplets.inner, quadruplets.outer):
        assert len(table.slot) == len(table.by_main) == len(table.main_slot) == 0
        assert table.max_per_middle == table.max_per_main == 0
        assert table.main_ptr.tolist() == [0] * (topology.main.n_edges + 1)
    assert edge_set(topology, "quadruplet").source_ptr.tolist() == [0, 0, 0]
    assert_same_tensors(pack(topology).unpack(), topology)


def test_a_dimer_has_edges_but_no_quadruplet():
    spec = GraphSpec(5.0, 0, quadruplet=Limit(10.0, 0))
    topology = concat([system_edges([[0, 0, 0], [0, 0, 1.1]], np.eye(3), False, spec)])
    assert edge_set(topology, "quadruplet").n_edges == 2
    assert len(quadruplet_rows(topology)) == 0


def test_graphs_not_asked_for_are_absent():
    plain = topology_of(slabs(), GraphSpec(6.0, 20))
    assert plain.atom_edge is plain.common is plain.quadruplet is plain.quadruplets is plain.atom_atom is None
    only = topology_of(slabs(), GraphSpec(6.0, 20, atom_edge=Limit(5.0, 0)))
    assert only.common is not None
    assert only.quadruplets is only.atom_atom is None


def test_atoms_far_outside_their_cell_have_the_quadruplets_of_their_images():
    pos, cell, tags = random_crystal(3)
    shift = np.random.default_rng(0).integers(-60_000, 60_000, pos.shape)
    here = concat([system_edges(pos, cell, True, OC, tags)])
    there = concat([system_edges(pos + shift @ cell, cell, True, OC, tags)])
    rows = quadruplet_rows(there)
    for atom in (1, 5, 9):
        rows[:, atom + 1 : atom + 4] += shift[rows[:, atom]] - shift[rows[:, 0]]
    assert unique_rows(rows) == unique_rows(quadruplet_rows(here))


def test_a_topology_with_every_graph_survives_transport_and_moves_shared_tensors_once(topology: Topology):
    received = pack(topology).unpack()
    assert_same_tensors(received, topology)
    assert received.main.by_source is received.main.reverse_edge
    moved = topology.to("meta")
    assert moved.main.by_source is moved.main.reverse_edge
    assert moved.quadruplets.inner.main_slot.is_meta
    assert moved.common.main.is_meta
    assert_same_tensors(topology.to("cpu"), topology)


def test_build_topology_hands_each_system_its_tags(topology: Topology):
    systems = slabs()
    pos = torch.tensor(np.concatenate([a.positions for a in systems]))
    cell = torch.tensor(np.stack([a.cell.array for a in systems]))
    pbc, n_atoms = torch.ones(3, 3, dtype=torch.bool), torch.tensor([len(a) for a in systems])
    tags = torch.tensor(np.concatenate([a.get_tags() for a in systems]))
    assert_same_tensors(build_topology(pos, cell, pbc, n_atoms, OC, tags=tags), topology)
    with pytest.raises(DataError, match="system 0 of the batch: it has no tags"):
        build_topology(pos, cell, pbc, n_atoms, OC)
    with pytest.raises(DataError, match="the batch has 3 tags"):
        build_topology(pos, cell, pbc, n_atoms, OC, tags=tags[:3])


def test_tags_of_the_wrong_shape_are_refused():
    with pytest.raises(DataError, match=r"its tags have shape \(2,\); 1 atoms need \(1,\)"):
        system_edges([[0, 0, 0]], np.eye(3) * 3, True, OC, [1, 2])


def test_a_system_whose_main_graph_is_empty_is_refused_even_if_a_wider_one_is_not():
    spec = GraphSpec(2.0, 0, atom_edge=Limit(4.0, 0))
    with pytest.raises(DataError, match=r"no two of its 1 atoms are within 2\.0 A"):
        system_edges([[0, 0, 0]], np.eye(3) * 3, True, spec)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"truncation": "both"}, "truncation is 'both'"),
        ({"self_images": "none"}, "self_images is 'none'"),
        ({"quadruplet_tags": (1,)}, "a quadruplet graph to apply to"),
        ({"quadruplet": Limit(5.0, 5), "quadruplet_tags": ()}, "at least one tag"),
        ({"atom_atom": Limit(5.0, 0)}, "the main graph has cutoff 6.0 A"),
        ({"atom_atom": Limit(6.0, 10)}, "max_neighbors 20"),
        ({"atom_atom": Limit(6.0, 50), "atom_edge": Limit(5.0, 0)}, "the atom_edge graph .* max_neighbors 0"),
        ({"atom_atom": Limit(6.0, 50), "quadruplet": Limit(7.0, 5)}, "the quadruplet graph has cutoff 7.0 A"),
    ],
)
def test_a_spec_that_cannot_be_met_is_refused(fields: dict, message: str):
    with pytest.raises(RequestError, match=message):
        GraphSpec(6.0, 20, **fields)


@pytest.mark.parametrize(("cutoff", "max_neighbors"), [(0.0, 20), (float("inf"), 20), (6.0, -1)])
def test_a_limit_that_cannot_be_is_refused(cutoff: float, max_neighbors: int):
    with pytest.raises(RequestError):
        Limit(cutoff, max_neighbors)


def test_the_search_reaches_as_far_as_the_widest_graph():
    spec = GraphSpec(5.0, 20, quadruplet=Limit(10.0, 8), atom_edge=Limit(4.0, 0))
    assert spec.parent == Limit(10.0, 0)
    assert dataclasses.replace(spec, atom_atom=Limit(12.0, 0)).parent == Limit(12.0, 0)
    assert GraphSpec(5.0, 20, quadruplet=Limit(4.0, 30)).parent == Limit(5.0, 30)
