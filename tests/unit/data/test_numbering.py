import numpy as np
import pytest

from ocpgem.data.numbering import ROWS, duplicate, number_records
from ocpgem.errors import RequestError

FILES = ["a", "b"]


def rows(*entries):
    """Each entry: file, record, atoms, and sid and fid where the file gives them."""
    table = []
    for file, record, atoms, *given in entries:
        sid, fid = [*given, None, None][:2]
        table.append((file, record, atoms, sid is not None, sid or 0, fid is not None, fid or 0))
    return np.array(table, dtype=ROWS)


def test_consecutive_frames_with_the_same_atoms_are_one_system():
    numbers = number_records(rows((0, 0, 7), (0, 2, 7), (0, 3, 8), (0, 4, 7), (1, 0, 7)), FILES, False)
    assert numbers.sids.tolist() == [0, 0, 1, 2, 3]
    assert numbers.fids.tolist() == [0, 2, 3, 4, 0]


def test_the_numbers_of_the_files_are_kept():
    numbers = number_records(rows((0, 0, 7, 12, 3), (0, 1, 7, 5, 9), (1, 4, 7, 5)), FILES, False)
    assert numbers.sids.tolist() == [12, 5, 5]
    assert numbers.fids.tolist() == [3, 9, 4]


def test_numbering_anew_keeps_the_systems_of_each_file_together():
    numbers = number_records(
        rows((0, 0, 7, 9), (0, 1, 8, 3), (0, 2, 7, 9), (1, 0, 7, 9), (1, 1, 6)), FILES, True
    )
    assert numbers.sids.tolist() == [0, 1, 0, 2, 3]
    assert numbers.fids.tolist() == [0, 1, 2, 0, 1]


def test_two_records_with_the_same_numbers_are_a_wrong_request():
    with pytest.raises(RequestError, match="a, record 0 and b, record 5 are both sid 4, frame 1; --renumber"):
        number_records(rows((0, 0, 7, 4, 1), (0, 1, 7, 4, 2), (1, 5, 7, 4, 1)), FILES, False)


def test_numbers_in_some_records_only_are_a_wrong_request():
    with pytest.raises(RequestError, match=r"b, record 2 has the number .* a, record 0 has none; --renumber"):
        number_records(rows((0, 0, 7), (1, 2, 7, 4)), FILES, False)


def test_duplicates_can_be_asked_for_between_owners_only():
    sids, fids = np.array([1, 1, 2, 1]), np.array([0, 0, 0, 0])
    assert duplicate(sids, fids) == (0, 1)
    assert duplicate(sids, fids, np.array([0, 0, 1, 1])) == (1, 3)
    assert duplicate(sids, fids, np.zeros(4, dtype=int)) is None
