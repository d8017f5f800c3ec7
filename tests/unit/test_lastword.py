"""The last word of a step: whatever it is, it fits, and what fits comes back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.contract import ErrorReport, Snapshot, Termination, ValidateResult
from finetune_api.datasetregistration import Columns, RowError
from finetune_api.lastword import LIMIT_BYTES, PACKED, decode, encode
from finetune_api.status import LossPoint, Progress

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
POINTS = st.lists(st.builds(LossPoint, step=st.integers(0, 10**9), loss=st.text(max_size=8)),
                  max_size=64)  # fmt: skip
WORDS = st.builds(
    Termination,
    exit_code=st.integers(0, 255),
    stop_was_requested=st.booleans(),
    error=st.none()
    | st.builds(
        ErrorReport,
        message=st.builds(lambda text, times: (text * times)[:4096], TEXTS, st.integers(1, 40)),
        log_tail=st.builds(lambda text, times: (text * times)[:2048], TEXTS, st.integers(1, 40)),
    ),
    validated=st.none()
    | st.builds(
        ValidateResult,
        format=st.just("alpaca"),
        purpose=st.just("conversation"),
        rows=st.integers(0, 10**12),
        invalid_rows=st.integers(0, 10**12),
        size_bytes=st.integers(0, 10**15),
        digest=TEXTS,
        preview=st.lists(TEXTS, max_size=5),
        columns=st.builds(Columns, prompt=st.text(min_size=1, max_size=256)),
        errors=st.lists(
            st.builds(RowError, row=st.integers(1, 9), field=st.just("row"), message=TEXTS),
            max_size=10,
        ),
    ),
    snapshot=st.none()
    | st.builds(
        Snapshot,
        attempt=st.integers(1, 9),
        sequence=st.integers(1, 9),
        progress=st.builds(Progress, step=st.integers(0, 10**6)),
        loss_history=POINTS,
        eval_history=POINTS,
    ),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(WORDS)
def test_a_last_word_fits_and_keeps_what_decides(end: Termination) -> None:
    text = encode(end)
    assert len(text.encode()) <= LIMIT_BYTES
    back = decode(text)
    assert back is not None
    assert (back.exit_code, back.stop_was_requested) == (end.exit_code, end.stop_was_requested)
    assert (back.error is None) == (end.error is None)
    if end.error is not None and back.error is not None:
        assert end.error.message.startswith(back.error.message)


def test_a_short_word_comes_back_whole() -> None:
    end = Termination(exit_code=64, error=ErrorReport(message="no such column", rank=1))
    assert decode(encode(end)) == end


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", "killed", PACKED, PACKED + "é", PACKED + "AAAA", PACKED + "x", "\ud800",
     "[" * 4000, '{"exitCode": "x"}'],
)  # fmt: skip
def test_what_is_no_last_word_of_ours_is_none(text: str) -> None:
    assert decode(text) is None
