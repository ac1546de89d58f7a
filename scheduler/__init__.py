"""A fair-use scheduler for anything that has slots: who runs next, by the logarithm of recent use and by owed service.

    priority = base + offset + wait_weight * owed / S - usage_weight * ln(1 + usage / (scale * share))

highest first, where

    owed    seconds the party has been owed service: since its head arrived or its last dispatch was paid for
    S       mean seconds a request holds a slot of the model
    usage   what the party used lately, in cost units, halved every `half_life`, requests in flight included
    scale   `rounds` x slots x mean cost of a request: usage that counts as little
    share   the party's weight

A request that waits on while its party is served gains nothing; one whose party is passed over gains `wait_weight`
points per service time. Doubling a large usage costs usage_weight * ln 2 = 6.9 points, that is 17 service times.

Worked example, 8 slots, mean cost 1000, so scale = 8 x 8 x 1000 = 64 000. Ann used 320 000 units lately and has been
owed service for 5 service times: 100 + 0.4 * 5 - 10 * ln(1 + 5) = 84.1. Bob used nothing and has just come: 100. Bob
goes first; Ann would have to be owed 45 service times to go before him. `python -m scheduler` ranks any such case.

Use `core.Core` with your own clock and I/O, `aio.Scheduler` on an asyncio loop, or `sync.SyncScheduler` where the slots
are yours. The settings are in `settings.Settings`. This package imports nothing of the gateway.
"""
