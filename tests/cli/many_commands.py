"""Run by `run_many`: several `python main.py WORDS...`, each in a process forked after the slow imports."""

import json
import os
import runpy
import sys
from pathlib import Path

import ocpgem.data.open
import ocpgem.evaluate.predict
import ocpgem.train.run  # noqa: F401  (what the commands will need)


def run(words: list[str], out: Path, err: Path) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["main.py", *words]
    try:
        runpy.run_path(str(Path(__file__).parents[2] / "main.py"), run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    folder = Path(sys.argv[1])
    codes = [
        run(words, folder / f"{number}.out", folder / f"{number}.err")
        for number, words in enumerate(json.loads((folder / "commands.json").read_text()))
    ]
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main()
