"""The recorded version of the code, and its copy."""

import subprocess
from pathlib import Path

import pytest

from ocpgem.errors import RequestError
from ocpgem.launch.code_version import code_version, copy_code, uncommitted_changes


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    (root / "ocpgem" / "__pycache__").mkdir(parents=True)
    (root / "main.py").write_text("print(1)\n")
    (root / "ocpgem" / "__init__.py").write_text("x = 1\n")
    (root / "ocpgem" / "__pycache__" / "x.pyc").touch()
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "main.py", "ocpgem/__init__.py"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    return root


def test_a_commit_and_what_differs_from_it_are_told(checkout: Path) -> None:
    version = code_version(checkout)
    assert len(version["commit"]) == 40
    assert not version["changed"]
    assert uncommitted_changes(checkout) == ""
    (checkout / "main.py").write_text("print(2)\n")
    assert code_version(checkout)["changed"]
    assert "+print(2)" in uncommitted_changes(checkout)


def test_outside_git_there_is_no_commit(tmp_path: Path) -> None:
    assert code_version(tmp_path)["commit"] is None


def test_the_copy_is_the_code_as_it_is_now(checkout: Path, tmp_path: Path) -> None:
    (checkout / "main.py").write_text("print(2)\n")
    copy = copy_code(tmp_path / "copy", checkout)
    assert (copy / "main.py").read_text() == "print(2)\n"
    assert not (copy / "ocpgem" / "__pycache__").exists()
    with pytest.raises(RequestError, match=r"has no main\.py"):
        copy_code(tmp_path / "again", tmp_path)
