from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl.engines._decode import stopped

short = st.text("ab<", max_size=12)


@given(pieces=st.lists(short, max_size=6), stops=st.lists(st.text("ab<", min_size=1, max_size=3), max_size=2))
def test_text_ends_after_the_first_stop_however_it_is_cut_into_pieces(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    ends = [match.end() for stop in stops for match in re.finditer(f"(?={re.escape(stop)})", whole)]
    first = min((whole.find(stop) + len(stop) for stop in stops if stop in whole), default=None)
    assert (first is None) == (not ends)
    text = ""
    for piece in pieces:
        keep = stopped(text, piece, tuple(stops))
        text += piece if keep is None else piece[:keep]
        if keep is not None:
            break
    assert text == (whole if first is None else whole[:first])
