"""Rates and open requests that several gateways count together, in Redis.

Owns the script and the connection; must not know requests. One call of the script is a round for many meters, each in
one atomic step. Redis' own clock is used, so gateways need not agree on theirs. All keys share a hash tag, so a cluster
keeps them in one slot.

A rate's bucket is debited when it is leased: what a gateway held when it died is lost, and the rate refills. Open
requests are leased by holder: when the lease of a dead gateway ends, its open requests are free again. When a holder
finds too few, the others hear of it and hand over what becomes free: otherwise whoever came first would keep all. If
Redis has lost its data, a gateway that knew it before says so. Then rates fill up from zero, and nobody may open more
requests until every earlier lease has ended, since nobody knows who holds what.
"""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from gateway.config import ConfigError, Quotas
from gateway.services.lender import Lender
from gateway.services.limit_facts import SharedAnswer
from gateway.services.meters import SharedBucket, SharedGauge

PREFIX = "{fairgate}:"
FIELDS = 7
"""Arguments per meter in the script: its kind and up to six figures."""

SCRIPT = """
local now = tonumber(ARGV[1])
if now == 0 then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local lease, holder, known = tonumber(ARGV[2]), ARGV[3], ARGV[4]

-- The epoch is the life of the data. `lost` is when a gateway noticed that an earlier one had ended; 0 = never.
local epoch, lost = unpack(redis.call('HMGET', KEYS[1], 'id', 'lost'))
lost = tonumber(lost or '0')
if lost > now then -- this clock was set back
    lost = now
    redis.call('HSET', KEYS[1], 'lost', lost)
end
if not epoch then
    epoch = ARGV[5]
    if known ~= '' then lost = now end
    redis.call('HSET', KEYS[1], 'id', epoch, 'lost', lost)
elseif known ~= '' and known ~= epoch and lost == 0 then
    lost = now
    redis.call('HSET', KEYS[1], 'lost', lost)
end

local function lent(room, need, want)
    return math.max(0, math.min(room, math.max(need, math.min(want, math.floor(room / 4)))))
end

local function bucket(key, rate, most, back, debt, need, want)
    local level, at, before = unpack(redis.call('HMGET', key, 'level', 'at', 'rate'))
    if level then -- time until now counts by the rate of then
        level = tonumber(level) + math.max(0, now - tonumber(at)) * tonumber(before or rate) / 1000
    elseif lost > 0 then
        level = (now - lost) * rate / 1000
    else
        level = most
    end
    level = math.min(most, level + back) - debt
    local granted = lent(math.floor(level + 0.000001), need, want)
    level = level - granted
    redis.call('HSET', key, 'level', string.format('%.6f', level), 'at', now, 'rate', rate)
    redis.call('PEXPIRE', key, math.ceil(math.max(0, most - level) / rate * 1000) + 1000)
    return {granted, math.floor(level), 0, 0}
end

-- Of each holder: what it holds, until when, the number of its claim, when it found too little (0: had enough).
local function gauge(key, most, kept, need, want, number)
    local others, sought, lacked = 0, 0, 0
    local all = redis.call('HGETALL', key)
    for n = 1, #all, 2 do
        local amount, ends, last, lack = string.match(all[n + 1], '(%d+):(%d+):(%d+):?(%d*)')
        lack = tonumber(lack) or 0 -- an older gateway tells none
        if all[n] == holder then
            if tonumber(last) >= number then return {0, 0, 0, 0} end
            lacked = lack
        elseif tonumber(ends) <= now then
            redis.call('HDEL', key, all[n])
        else
            others = others + tonumber(amount)
            if now - lack < lease / 4 then sought = 1 end
            if tonumber(ends) > now + lease then -- the clock was set back: no lease is longer than this
                redis.call('HSET', key, all[n], string.format('%d:%d:%d:0', amount, now + lease, last))
            end
        end
    end
    local unsure = lost > 0 and now - lost < lease
    local room = most - others - kept
    local granted = unsure and 0 or lent(room, need, want)
    if need > 0 then lacked = (granted < need and not unsure) and now or 0 end
    redis.call('HSET', key, holder, string.format('%d:%d:%d:%d', kept + granted, now + lease, number, lacked))
    redis.call('PEXPIRE', key, lease * 2)
    return {granted, math.max(0, room - granted), unsure and 1 or 0, sought}
end

local answers = {epoch}
for n = 2, #KEYS do
    local at = 5 + (n - 2) * 7
    local a, b, c, d, e, f = unpack(ARGV, at + 2, at + 7)
    if ARGV[at + 1] == 'bucket' then
        answers[n] = bucket(KEYS[n], tonumber(a), tonumber(b), tonumber(c), tonumber(d), tonumber(e), tonumber(f))
    else
        answers[n] = gauge(KEYS[n], tonumber(a), tonumber(b), tonumber(c), tonumber(d), tonumber(e))
    end
end
return answers
"""


class SharedCounts:
    """One gateway's rounds with Redis. `time_ms` replaces Redis' clock unless it is None (tests)."""

    def __init__(
        self, url: str, config: Quotas, *, clock: Callable[[], float], time_ms: Callable[[], int] | None = None
    ) -> None:
        self._client = _client(url, config.deadline)
        self._lease = config.lease
        self._clock = clock
        self._time_ms = time_ms
        self._holder = secrets.token_urlsafe(9)
        self._epoch = ""
        self._digest = ""

    async def ask(self, meters: Sequence[SharedBucket | SharedGauge]) -> list[bool]:
        """One round. Raises RedisError, OSError."""
        sent = self._clock()
        keys = [PREFIX + "epoch", *(f"{PREFIX}{meter.scope}:{meter.name}" for meter in meters)]
        now = self._time_ms() if self._time_ms is not None else 0
        arguments: list[Any] = [now, int(self._lease * 1000), self._holder, self._epoch, secrets.token_urlsafe(9)]
        for meter in meters:
            claim = meter.claim()
            arguments += [*claim, *[0] * (FIELDS - len(claim))]
        epoch, *answers = await self._run(keys, arguments)
        self._epoch = epoch
        until, now_ = sent + self._lease, self._clock()
        made = [SharedAnswer(int(a), int(b), bool(c), bool(d)) for a, b, c, d in answers]
        return [meter.apply(answer, until, now_) for meter, answer in zip(meters, made, strict=True)]

    async def _run(self, keys: list[str], arguments: list[Any]) -> Any:
        """Call the script by its digest, or send it whole if the server does not know it. If the server refuses it, it
        may have become a replica and kept its connections: only a new connection leads to its successor."""
        try:
            return await self._evaluated(keys, arguments)
        except ResponseError:
            await self._client.connection_pool.disconnect()
            raise

    async def _evaluated(self, keys: list[str], arguments: list[Any]) -> Any:
        if self._digest:
            try:
                return await self._client.evalsha(self._digest, len(keys), *keys, *arguments)
            except NoScriptError:
                self._digest = ""
        answer = await self._client.eval(SCRIPT, len(keys), *keys, *arguments)
        self._digest = DIGEST
        return answer

    async def close(self) -> None:
        await self._client.aclose()


def _client(url: str, deadline: float) -> Any:
    """A client that has not connected yet. Raises ConfigError."""
    try:
        return aioredis.Redis.from_url(
            url,
            decode_responses=True,
            socket_connect_timeout=deadline,
            socket_timeout=deadline,
            retry=Retry(NoBackoff(), 0),
            max_connections=2,
            health_check_interval=0,
        )
    except ValueError as err:
        raise ConfigError(f"shared: {err}") from err


DIGEST = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
"""Redis' name for the script: EVAL caches it under this digest."""


def shared_lender(
    counts: SharedCounts, config: Quotas, clock: Callable[[], float]
) -> Lender[SharedBucket | SharedGauge]:
    """The lender for rates and open requests in Redis."""
    return Lender("Redis", counts.ask, (RedisError, OSError), lease=config.lease, deadline=config.deadline, clock=clock)
