"""The prediction of a step on many ranks, at its limits."""

from dataclasses import replace
from math import inf

import pytest

from ocpgem.train.scaling import BACKWARD, LINKS, Links, messages, predict, seconds_of, seconds_within

STEP = 0.4
LINK = LINKS["A100-80GB"]
PERFECT = Links(8, inf, inf, 0.0, 0.0)
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
N = 40_000_000


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_one_rank_takes_the_measured_step(zero_stage: int) -> None:
    found = predict(STEP, messages(N, zero_stage, 10**6), 1, LINK)
    assert found.seconds == STEP
    assert found.efficiency == 1


@pytest.mark.parametrize("ranks", RANKS)
def test_links_without_limit_leave_only_the_balance(ranks: int) -> None:
    found = predict(STEP, messages(N, 1, 10**6), ranks, PERFECT, 0.05)
    assert found.seconds == pytest.approx(1.05 * STEP)
    assert found.exposed == 0


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_more_ranks_slower_links_more_parameters_and_less_balance_never_help(zero_stage: int) -> None:
    def seconds(n: int = N, ranks: int = 64, links: Links = LINK, unevenness: float = 0.01) -> float:
        return predict(STEP, messages(n, zero_stage, 10**7), ranks, links, unevenness).seconds

    times = [seconds(ranks=ranks) for ranks in RANKS]
    assert times == sorted(times)
    assert times[0] < times[3] < times[-1]
    assert seconds(n=2 * N) > seconds()
    assert seconds(unevenness=0.02) > seconds()
    for name in ("in_node", "between_nodes", "reached"):
        assert seconds(links=replace(LINK, **{name: getattr(LINK, name) / 2})) > seconds()
    for name in ("latency_in_node", "latency_between_nodes"):
        assert seconds(links=replace(LINK, **{name: getattr(LINK, name) * 2})) > seconds()


def test_a_ring_in_a_node_sends_each_byte_twice_but_for_the_own_share() -> None:
    (gradients,) = messages(N, 0, 10**9)
    expected = 2 * 7 / 8 * 4 * N / LINK.in_node / LINK.reached
    assert seconds_of(gradients, 8, replace(LINK, latency_in_node=0)) == pytest.approx(expected)
    assert gradients.sent(8) == 2 * 7 / 8 * 4 * N
    (_, weights) = messages(N, 1, 10**9)
    assert weights.sent(8) == 7 / 8 * 4 * N


def test_overlap_hides_at_most_the_backward_pass_and_never_the_last_bucket() -> None:
    in_turn, hidden = (messages(N, 1, N // 10, overlap) for overlap in (False, True))
    slow = replace(LINK, between_nodes=1e6)
    before, after = predict(STEP, in_turn, 64, LINK), predict(STEP, hidden, 64, LINK)
    gradients = seconds_of(in_turn[0], 64, LINK)
    assert before.exposed - after.exposed == pytest.approx(0.9 * gradients)
    assert before.exchange == after.exchange
    saved = predict(STEP, in_turn, 64, slow).seconds - predict(STEP, hidden, 64, slow).seconds
    assert saved == pytest.approx(BACKWARD * STEP)
    whole = messages(N, 1, 10**9, True)
    assert predict(STEP, whole, 64, LINK) == predict(STEP, messages(N, 1, 10**9), 64, LINK)


@pytest.mark.parametrize(("bucket", "calls"), [(10**9, 1), (N, 1), (N - 1, 2), (10**6, 40)])
def test_gradients_go_in_as_many_messages_as_there_are_buckets(bucket: int, calls: int) -> None:
    assert messages(N, 1, bucket)[0].calls == calls


def test_messages_within_groups_are_never_hidden_and_do_not_leave_the_node() -> None:
    within = seconds_within(10**7, 400, LINK)
    assert within == pytest.approx(10**7 / LINK.in_node / LINK.reached + 400 * LINK.latency_in_node)
    slower = replace(LINK, between_nodes=1.0, latency_between_nodes=1.0)
    assert seconds_within(10**7, 400, slower) == within
    for overlap in (False, True):
        sent = messages(N, 1, N // 10, overlap)
        before, after = predict(STEP, sent, 64, LINK), predict(STEP, sent, 64, LINK, within=within)
        assert after.seconds == pytest.approx(before.seconds + within)
        assert after.exposed == before.exposed
