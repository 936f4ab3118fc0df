"""Reads mutated records in a process of limited memory that notices every execution; run by test_safe_pickle.py.

python pickle_fuzz.py CORPUS N SEED     CORPUS: folder of pickled records; prints what happened as JSON
"""

import codecs
import json
import pickle
import pickletools
import random
import resource
import struct
import sys
import time
import traceback
from collections import Counter
from itertools import pairwise
from pathlib import Path

from ocpgem.data.released_lmdb import read_fields, system_of
from ocpgem.errors import DataError

ADDRESS_SPACE = 1 << 30
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)
HOSTILE = (
    b"cposix\nsystem\n\x8c\x10touch fuzz-witness\x85R",
    b"\x8c\x08builtins\x8c\x04eval\x93\x8c\x031+1\x85R",
    b"cbuiltins\nexec\n\x8c\x08import os\x85R",
    b"cnumpy\ndtype\n\x8c\x01O\x85R",
    b"cos\nsystem\n",
    b"}\x8c\x01a]sb",
    b"(" * 50,
    b"\x85" * 50,
    b"h\x00h\x00\x86\x94" * 20,
)
OPCODES = [ord(opcode.code) for opcode in pickletools.opcodes]
NESTED = b"B"  # BINBYTES, which holds the torch file of a tensor
WELL_FORMED = (
    b"0", b"(", b")", b"]", b"}", b"N", b"t", b"u", b"e", b"s", b"a", b"R", b"b", b"\x81", b"\x85", b"\x86", b"\x87",
    b"\x93", b"\x94", b"Q", b"1", b"2", b".", b"K\x00", b"K\x03", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x8a\x01\xff", b"G\x7f\xf8\0\0\0\0\0\0", b"C\x04abcd",
    b"\x8c\x03pos", b"r\xff\xff\xff\x7f", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
)  # fmt: skip


class Mutator:
    """Mutations of records; the same seed makes the same ones.

    Half of them change bytes anywhere, after which most records cannot be followed far; the others change whole
    instructions, or the torch file inside one, and keep the rest in step.
    """

    def __init__(self, corpus: list[bytes], seed: int) -> None:
        self.random = random.Random(seed)
        self.corpus = [_instructions(record) for record in corpus]

    def draw(self) -> bytes:
        instructions = list(self.random.choice(self.corpus))
        for _ in range(self.random.choice((0, 1, 1, 2))):
            self.change_instruction(instructions)
        content = bytearray(b"".join(instructions))
        for _ in range(self.random.choice((0, 0, 1, 2))):
            self.change_bytes(content)
        return bytes(content)

    def change_instruction(self, instructions: list[bytes]) -> None:
        rng = self.random
        at = rng.randrange(len(instructions))
        kind = rng.randrange(7)
        if kind == 0:
            nested = [i for i, code in enumerate(instructions) if code[:1] == NESTED]
            at = rng.choice(nested) if nested else at
            content = bytearray(instructions[at][5:])
            self.change_bytes(content)
            instructions[at] = NESTED + struct.pack("<I", len(content)) + content
        elif kind == 1:
            del instructions[at : at + rng.choice((1, 1, 2, 5))]
            instructions.append(b".")
        elif kind == 2:
            instructions.insert(at, rng.choice(WELL_FORMED))
        elif kind == 3:
            instructions[at] = rng.choice(WELL_FORMED)
        elif kind == 4:
            instructions.insert(at, b"h" + bytes([rng.randrange(120)]))
        elif kind == 5:
            other = rng.randrange(len(instructions))
            instructions[at], instructions[other] = instructions[other], instructions[at]
        else:
            other = rng.choice(self.corpus)
            first = rng.randrange(len(other))
            instructions[at : at + rng.choice((0, 1, 3))] = other[first : first + rng.choice((1, 3, 10))]

    def change_bytes(self, content: bytearray) -> None:
        rng = self.random
        at = rng.randrange(len(content) + 1)
        end = min(at + rng.choice((1, 2, 3, 8, 40)), len(content))
        kind = rng.randrange(9)
        if kind == 0:
            content[at:end] = rng.randbytes(end - at)
        elif kind == 1 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 2 and at < len(content):
            content[at] = rng.choice(OPCODES)
        elif kind == 3:
            del content[at:end]
        elif kind == 4:
            content[at:at] = content[at:end] * rng.choice((1, 2, 20))
        elif kind == 5:
            content[at:at] = rng.randbytes(end - at)
        elif kind == 6:
            number = rng.choice(EXTREMES).to_bytes(8, rng.choice(("little", "big")))
            size = rng.choice((1, 2, 4, 8))
            content[at : at + size] = number[:size]
        elif kind == 7:
            content[at:at] = rng.choice(HOSTILE)
        elif rng.random() < 0.3:
            del content[at:]


def _instructions(record: bytes) -> list[bytes]:
    """The instructions of a pickle, what follows it with the last; of a zip archive the whole."""
    if record.startswith(b"PK"):
        return [record]
    places = [at for _, _, at in pickletools.genops(record)]
    return [record[first:last] for first, last in pairwise([*places, len(record)])]


def main(folder: str, count: int, seed: int) -> None:
    """Read `count` mutated records and print outcomes, executions, the slowest and the memory."""
    corpus = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    codecs.lookup("cp437")  # zipfile's, imported when first needed; so is what these records need
    for record in corpus:
        system_of(read_fields(record, "record"), "record")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    armed = False
    events: Counter[str] = Counter()

    def notice(event: str, _arguments: object) -> None:
        if armed:
            events[event] += 1

    sys.addaudithook(notice)
    armed = True
    pickle.loads(b"cos\nsystem\n\x8c\x04true\x85R.")  # or the hook would show nothing
    armed = False
    noticed = "os.system" in events
    events.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mutator = Mutator(corpus, seed)
    outcomes: Counter[str] = Counter()
    faults, slowest, begin = [], 0.0, time.monotonic()
    for _ in range(count):
        content = mutator.draw()
        start = time.perf_counter()
        armed = True
        try:
            system_of(read_fields(content, "record"), "record").validate()
            outcome = "read"
        except DataError as error:
            text = str(error)
            outcome = "refused" if "is refused" in text else "damaged"
            if "record" not in text or "\n" in text or len(text) > 2000:
                faults.append(f"message {text[:300]!r} of {content.hex()}")
        except BaseException as error:
            armed = False
            outcome = "crashed"
            faults.append(f"{traceback.format_exception(error)[-3:]} of {content.hex()}")
        armed = False
        slowest = max(slowest, time.perf_counter() - start)
        outcomes[outcome] += 1
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = {
        "hook_works": noticed,
        "outcomes": outcomes,
        "executions": events,
        "faults": faults[:5],
        "slowest": slowest,
        "growth_mb": (after - before) / 1024,
        "seconds": time.monotonic() - begin,
    }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
