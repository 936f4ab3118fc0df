"""Writing small files so that they are complete or absent."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` under a temporary name in the same folder, then move it into place."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
