"""A token bucket: so much a second, so much at once."""

import time


class Budget:
    """What may be spent now; it fills up again with time."""

    def __init__(self, a_second: float, at_once: float) -> None:
        """Start full."""
        self._a_second, self._at_once = a_second, at_once
        self._left, self._at = at_once, time.monotonic()

    def take(self) -> bool:
        """Spend one; False: there is none now."""
        now = time.monotonic()
        self._left = min(self._left + (now - self._at) * self._a_second, self._at_once)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    @property
    def seconds_until_next(self) -> float:
        """When `take` may succeed again."""
        return max(1.0 - self._left, 0.0) / self._a_second
