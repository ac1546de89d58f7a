"""Settings and reservations that change while gateways run, and fair use that survives a restart (S, U7).

Owns the path from the store to the scheduler: every second, each replica reads and applies what operators changed. The
fair-use accounts are saved at every landmark and restored at the start. Must not know requests.
"""

import logging
import time
from collections.abc import Callable

import anyio
from msgspec.json import decode, encode

from gateway.api.model_names import meant
from gateway.store.base import Store, StoreError
from gateway.store.operations import Operation, Reservation, SavedUsage
from scheduler.aio import Scheduler
from scheduler.estimate import Estimator
from scheduler.model import Saved
from scheduler.reservations import Window
from scheduler.settings import Settings

log = logging.getLogger("fairgate.operations")

LOOK_EVERY = 1.0  # seconds
REFRESH_EVERY = 60.0  # seconds; wall-clock times are converted again, so that a corrected clock moves the windows
LONGEST_ABSENCE = 30 * 86_400.0  # seconds; older accounts have decayed to nothing with any half-life


def effective(base: Settings, overrides: dict[str, str]) -> Settings:
    """The configured settings with the ones changed at runtime (name -> JSON value). Raises ValueError."""
    return base.changed(**{name: decode(value) for name, value in overrides.items()})


class Operations:
    """Applies what is in force. `base` is the configuration's scheduling section; `writer` names the saved accounts."""

    def __init__(
        self,
        store: Store,
        scheduler: Scheduler,
        estimator: Estimator,
        base: Settings,
        *,
        writer: str,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
        on_settings: Callable[[Settings], None] = lambda settings: None,
    ) -> None:
        """`clock` is the scheduler's own, in seconds; `wall` gives Unix seconds; `on_settings` is called with the
        settings applied."""
        self.base = base
        self._store = store
        self._scheduler = scheduler
        self._estimator = estimator
        self._writer = writer
        self._clock = clock
        self._wall = wall
        self._on_settings = on_settings
        self._version = -1
        self._applied_at = -REFRESH_EVERY
        self._saved_at = clock()

    async def start(self) -> None:
        """Restore the accounts of the previous run, then apply what is in force. Raises StoreError."""
        saved = await self._store.saved_usage(self._writer)
        if saved is not None:
            self._take_back(saved)
        await self.look()

    def _take_back(self, saved: SavedUsage) -> None:
        """Accounts that this version cannot read are logged and dropped: the queue matters more than its history."""
        age = max(0.0, self._wall() - saved.at / 1e6)
        try:
            if age < LONGEST_ABSENCE:
                self._scheduler.import_usage(decode(saved.body, type=Saved), age)
        except ValueError as err:
            log.error("the fair use that %s saved is not taken over: %s", saved.writer, err)

    async def run(self) -> None:
        """Apply and save until cancelled; a failing store delays both and loses neither."""
        while True:
            await anyio.sleep(LOOK_EVERY)
            try:
                await self.look()
                if self._clock() - self._saved_at >= self._estimator.settings.landmark_every:
                    await self.save()
            except StoreError as err:
                log.warning("operations could not be read or saved: %s", err)

    async def look(self) -> None:
        """Apply what changed since the last look. Raises StoreError."""
        version = await self._store.operations_version()
        if version == self._version and self._clock() - self._applied_at < REFRESH_EVERY:
            return
        settings = {row.id: row.body or "null" for row in await self._store.operations("setting")}
        self._apply(settings, await reservations(self._store))
        self._version, self._applied_at = version, self._clock()

    def _apply(self, overrides: dict[str, str], reservations: list[Reservation]) -> None:
        try:
            settings = effective(self.base, overrides)
        except ValueError as err:
            log.error("settings not applied, the last ones stay in force: %s", err)
        else:
            if settings != self._estimator.settings:
                self._scheduler.set_settings(settings)
                self._estimator.settings = settings
                self._on_settings(settings)
                log.info("settings applied", extra={"settings": overrides})
        ahead = self._clock() - self._wall()
        self._scheduler.set_reservations(_window(each, ahead) for each in reservations if each.state == "approved")

    def rebase(self, base: Settings) -> None:
        """The configuration was reloaded: settings changed at runtime are applied on top of it at the next look."""
        self.base = base
        self._version = -1

    async def save(self) -> None:
        """Write the fair-use accounts. Raises StoreError."""
        body = encode(self._scheduler.export_usage()).decode()
        at = int(self._wall() * 1e6)
        await self._store.save_usage(SavedUsage(self._writer, body, at), at - int(LONGEST_ABSENCE * 1e6))
        self._saved_at = self._clock()

    async def close(self) -> None:
        """Save for the next run."""
        try:
            await self.save()
        except StoreError as err:
            log.warning("fair use was not saved: %s", err)


async def reservations(store: Store) -> list[Reservation]:
    """All reservations that this version can read. Raises StoreError."""
    return [each for row in await store.operations("reservation") if (each := _read(row)) is not None]


def _read(row: Operation) -> Reservation | None:
    """None, with a log entry, if this version cannot read the row or the window is invalid; the others still apply."""
    try:
        reservation = decode(row.body or "", type=Reservation)
        _window(reservation, 0.0)
    except (ValueError, OverflowError) as err:
        log.error("reservation %s is not applied: %s", row.id, err)
        return None
    return reservation


def _window(row: Reservation, ahead: float) -> Window:
    """Converts wall-clock microseconds to the scheduler's clock, which is `ahead` seconds ahead of it."""
    return Window(
        id=row.id,
        tenant=row.tenant,
        user=row.user,
        pools=meant(row.models) or None,
        start=row.starts_at / 1e6 + ahead,
        end=row.ends_at / 1e6 + ahead,
        mode=row.mode,
    )
