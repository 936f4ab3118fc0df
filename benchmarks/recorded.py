"""Records of benchmarks, and the tables of a document that are copied from them.

    python benchmarks/recorded.py docs/scaling.md scaling predict_scaling scaling_table
    python benchmarks/recorded.py docs/performance.md speed

gives every table of the document that one of these records below benchmarks/results has, too (known by its first row),
the rows of that record.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def write(folder: Path, name: str, found: dict[str, Any], lines: Iterable[str]) -> None:
    """name.json, and the lines as name.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")


def tables(text: str) -> dict[str, list[str]]:
    """First row -> all rows, of each table in Markdown."""
    found: list[list[str]] = []
    before = ""
    for line in text.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append(line)
        before = line
    return {rows[0]: rows for rows in found}


def with_recorded_tables(text: str, records: Iterable[str]) -> str:
    """The text with the rows of each table that one of the records has, too."""
    known = {first: rows for record in records for first, rows in tables(record).items()}
    for first, rows in tables(text).items():
        if first in known:
            text = text.replace("\n".join(rows), "\n".join(known[first]))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("document", type=Path)
    parser.add_argument(
        "records", nargs="+", metavar="RECORD", help="a name in benchmarks/results, without .md"
    )
    arguments = parser.parse_args()
    document = arguments.document
    records = ((RESULTS / f"{name}.md").read_text() for name in arguments.records)
    document.write_text(with_recorded_tables(document.read_text(), records))


if __name__ == "__main__":
    main()
