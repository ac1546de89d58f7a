"""The shape of the scenario `burst`: a few users, then many at once, then a few. Given to locust beside `users.py`."""

from locust import LoadTestShape

from loadtests.users import PLAN


class Burst(LoadTestShape):
    """A third of the time each."""

    def tick(self) -> tuple[int, float] | None:
        third = PLAN["seconds"] / 3
        passed = self.get_run_time()  # type: ignore[no-untyped-call]
        if passed >= 3 * third:
            return None
        return (PLAN["peak"], 40.0) if third <= passed < 2 * third else (PLAN["calm"], 40.0)
