"""H1, H2, H3: every case of the corpus has its verdict, however its bytes are cut into reads."""

import os
import random

import pytest

from tests.http1 import corpus

SEED = int(os.environ.get("FAIRGATE_TEST_SEED") or random.SystemRandom().randrange(2**32))
REQUESTS = corpus.cases("requests")
RESPONSES = corpus.cases("responses")


@pytest.fixture(autouse=True)
def _say_seed() -> None:
    print(f"FAIRGATE_TEST_SEED={SEED}")


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case.id)
def test_request(case: corpus.Case) -> None:
    """H1, H2, H3: accepted and refused requests; a refused one leaves a dead reader."""
    for how, reads in corpus.cuts(case.send, SEED):
        seen, end = corpus.read_requests(reads, case.limits)
        said = " | ".join([*map(str, seen), *([end] if end else [])])
        assert said == case.want, (how, case.rfc)
        for name, value in case.fields.items():
            assert seen[0].fields[name.encode()] == value.encode("latin-1"), how


@pytest.mark.parametrize("case", RESPONSES, ids=lambda case: case.id)
def test_response(case: corpus.Case) -> None:
    """H2 towards backends: broken framing is an error, bytes behind the end are never taken for an answer."""
    for how, reads in corpus.cuts(case.send, SEED):
        assert corpus.read_response(reads, case.method, case.eof) == case.want, (how, case.rfc)


def test_corpus_is_sound() -> None:
    """Names are unique, sections are given, and no two cases send the same bytes with different verdicts."""
    for cases in (REQUESTS, RESPONSES):
        assert len({case.id for case in cases}) == len(cases)
        verdicts: dict[tuple[bytes, str, bool, int | None], str] = {}
        for case in cases:
            assert case.rfc
            assert verdicts.setdefault((case.send, case.method, case.eof, case.limits), case.want) == case.want, case.id
    assert len(REQUESTS) >= 250
    assert len(RESPONSES) >= 120
