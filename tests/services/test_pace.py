"""`gateway.services.pace`: what a model's next request is expected to take."""

import pytest

from gateway.services.pace import FIRST, Pace


def test_a_model_that_had_to_be_loaded_is_not_slow() -> None:
    """L2: an estimate that no budget holds would refuse every request by which it could be mended."""
    pace = Pace()
    pace.observe("m", 7, 3, 120.0)
    assert pace.seconds("m", 7, 4096) == pytest.approx(FIRST * 4096, rel=0.1)
    assert pace.seconds("other", 0, 4096) == FIRST * 4096


@pytest.mark.parametrize("per_token", [0.002, 0.5])
def test_the_pace_of_a_model_is_learned_in_some_requests(per_token: float) -> None:
    pace = Pace()
    for _ in range(100):
        pace.observe("m", 0, 400, 400 * per_token)
    assert pace.seconds("m", 0, 1000) == pytest.approx(1000 * per_token, rel=0.05)
    assert pace.seconds("m", 100, 0) == pytest.approx(10 * per_token, rel=0.05)


def test_a_request_without_tokens_does_not_change_the_pace() -> None:
    pace = Pace()
    pace.observe("m", 0, 0, 60.0)
    assert pace.seconds("m", 0, 1) == FIRST


def test_what_may_have_been_produced_by_now_is_the_other_way_round() -> None:
    pace = Pace()
    assert pace.tokens("m", 100, pace.seconds("m", 100, 400)) == pytest.approx(400)
    assert pace.tokens("m", 100, 0.0) == 0.0
