"""What a kernel may cost over time: values, and clocks that the tests set."""

import pytest

from kernel_provider.warden import budget as module
from kernel_provider.warden.budget import Bucket, Budget, Pace


def test_a_burst_is_free_and_a_debt_is_waited_for() -> None:
    """Whoever takes no more than there is never waits; a debt takes its time."""
    bucket = Bucket(10, 100, now=50.0)
    bucket.take(100, now=50.0)
    assert bucket.wait(now=50.0) == 0
    bucket.take(5, now=50.0)
    assert bucket.wait(now=50.0) == pytest.approx(0.5)
    assert bucket.wait(now=50.4) == pytest.approx(0.1)
    assert bucket.wait(now=50.6) == 0


def test_a_rest_fills_no_more_than_a_burst() -> None:
    """A long silence saves up one burst, not more."""
    bucket = Bucket(10, 100, now=0.0)
    bucket.take(60, now=0.0)
    bucket.take(110, now=1000.0)
    assert bucket.wait(now=1000.0) == pytest.approx(1)


def test_more_than_a_burst_at_once_is_owed() -> None:
    """What was so large that it could not be known before is paid for afterwards."""
    bucket = Bucket(10, 100, now=0.0)
    bucket.take(300, now=0.0)
    assert bucket.wait(now=0.0) == pytest.approx(20)


def test_in_the_long_run_the_rate_holds() -> None:
    """Whoever takes whenever it need not wait gets the rate, and the burst once."""
    bucket = Bucket(10, 100, now=0.0)
    now, taken = 0.0, 0
    while now < 100:
        bucket.take(7, now=now)
        taken += 7
        now += bucket.wait(now=now)
    assert taken == pytest.approx(100 * 10 + 100, abs=7)


def test_a_connection_has_a_pace_of_its_own() -> None:
    """Three seconds' worth at full speed, and by the second then, a few at a time."""
    now = 7.0
    pace = Pace(100, clock=lambda: now)
    assert pace.room() == 300 * module.SHORT
    pace.spend(300)
    assert (pace.room(), pace.wait()) == (module.LEAST, 0)
    pace.spend(16)
    assert pace.room() == 0
    assert pace.wait() == pytest.approx(0.16)
    now += 0.17
    assert (pace.room(), pace.wait()) == (module.LEAST, 0)
    now += 100
    assert pace.room() == 300 * module.SHORT


@pytest.mark.parametrize("over", ["size", "messages", "work"])
def test_each_of_the_three_is_kept_to(over: str) -> None:
    """Bytes, messages and processor time: the one that is used up is waited for."""
    rates = {"size": module.BYTES, "messages": module.MESSAGES, "work": module.WORK}
    rate, burst = rates[over]
    busy = 0.0
    budget = Budget(clock=lambda: 7.0, processor=lambda: busy)
    assert budget.wait() == 0
    if over == "work":
        busy = burst + rate
    spent = {"size": 0, "messages": 0} | {over: int(burst + rate)}
    budget.spend(size=spent["size"], messages=spent["messages"], since=0.0)
    assert budget.wait() == pytest.approx(1, abs=0.001)


def test_to_be_woken_for_nothing_costs_as_well() -> None:
    """Bytes that come one by one are paid for by the turn."""
    budget = Budget(clock=lambda: 7.0, processor=lambda: 0.0)
    for _ in range(int(module.WORK[1] / module.TURN) + 10):
        budget.spend(size=1, messages=0, since=0.0)
    assert budget.wait() > 0
