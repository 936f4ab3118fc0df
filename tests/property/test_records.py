"""Every system that can be described comes back from its record bit for bit."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ocpgem.data.record import decode, encode
from ocpgem.data.system import System

FLOATS = st.floats(width=32, allow_nan=False)
INT64 = st.integers(-(2**63), 2**63 - 1)


@st.composite
def systems(draw: st.DrawFn) -> System:
    n = draw(st.integers(1, 20))
    vectors = arrays(np.float32, (n, 3), elements=FLOATS)
    species = arrays(np.uint8, n)
    return System(
        pos=draw(vectors),
        cell=draw(arrays(np.float32, (3, 3), elements=FLOATS)),
        pbc=draw(arrays(np.bool_, 3)),
        atomic_numbers=draw(species),
        tags=draw(species),
        fixed=draw(arrays(np.bool_, n)),
        energy=draw(st.none() | st.floats(allow_nan=False)),
        forces=draw(st.none() | vectors),
        sid=draw(INT64),
        fid=draw(INT64),
        energy_relaxed=draw(st.none() | st.floats(allow_nan=False)),
        pos_relaxed=draw(st.none() | vectors),
        source="somewhere",
    )


@given(systems())
def test_decoding_inverts_encoding(system: System) -> None:
    back = decode(encode(system), "somewhere")
    for field in System.__slots__:
        original, decoded = getattr(system, field), getattr(back, field)
        if isinstance(original, np.ndarray):
            assert decoded.dtype == original.dtype, field
            assert np.array_equal(decoded, original), field
        else:
            assert decoded == original, field


@given(systems())
def test_a_record_is_the_same_bytes_every_time(system: System) -> None:
    assert encode(decode(encode(system), "")) == encode(system)
