"""A clock that stands still until a test moves it."""

START = 1.8e9  # in the year 2027


class FakeClock:
    """`pipeline.clock.Clock`; `now` counts from 0."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def wall(self):
        return START + self.now
