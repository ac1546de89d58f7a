"""Does it hold? Long and hostile runs against a gateway process; each is one command, bounded in time.

Measures nothing for comparison with others (that is `bench/`) and tests no single rule (that is `tests/`).
"""
