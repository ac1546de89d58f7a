"""A fair-use scheduler for anything that has slots. Who runs next depends on the logarithm of recent use and on how
long service has been owed:

    priority = base + offset + wait_weight * owed / S - usage_weight * ln(1 + usage / (scale * share))

The highest priority goes first. In this formula

    owed    seconds for which the party has been owed service: since its head arrived or its last dispatch was paid for
    S       mean seconds that a request holds a slot of the model
    usage   recent use of the party in cost units, halved every `half_life`, including requests in flight
    scale   `rounds` x slots x mean cost of a request: an amount of usage that counts as little
    share   weight of the party

A request that keeps waiting while its party is served gains nothing. If its party is passed over, it gains
`wait_weight` points per service time. Doubling a large usage costs usage_weight * ln 2 = 6.9 points, the equivalent of
17 service times.

Worked example with 8 slots and a mean cost of 1000, so scale = 8 x 8 x 1000 = 64 000. Ann has used 320 000 units
recently and has been owed service for 5 service times: 100 + 0.4 * 5 - 10 * ln(1 + 5) = 84.1. Bob has used nothing and
has just arrived: 100. Bob goes first; Ann would have to be owed 45 service times to go before him. `python -m
scheduler` ranks any such case.

Use `core.Core` with your own clock and I/O, `aio.Scheduler` on an asyncio loop, or `sync.SyncScheduler` if you manage
the slots yourself. `settings.Settings` lists the settings. This package does not import the gateway.
"""
