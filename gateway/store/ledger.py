"""The ledger of budgets in SQL: statements and rows, the same for both databases. Must not know a driver.

Statements take their values as `$n`; `leases` is JSON text.
"""

from typing import Any

import msgspec

from gateway.store.limits import Lease, LedgerRow

BUDGETS = "SELECT scope, budget, spent, leases FROM budgets"
NEW_BUDGET = "INSERT INTO budgets (scope, budget, spent, leases) VALUES ($1, $2, 0, '{}') ON CONFLICT DO NOTHING"
SAVE_BUDGET = "UPDATE budgets SET spent = $3, leases = $4 WHERE scope = $1 AND budget = $2"

PAST = "SELECT scope, budget FROM budgets WHERE budget > $1 AND budget < $2 LIMIT $3"
FORGET = f"DELETE FROM budgets WHERE (scope, budget) IN ({PAST})"  # noqa: S608 -- constants
FORGOTTEN_AT_ONCE = 1000
"""Rows deleted by one statement, whose timeout is short."""


def budget_of(row: Any) -> LedgerRow:
    """A fetched row of the ledger."""
    leases = msgspec.json.decode(row["leases"], type=dict[str, Lease])
    return LedgerRow(row["scope"], row["budget"], row["spent"], leases)


def budget_values(row: LedgerRow) -> tuple[str, str, int, str]:
    """The values of SAVE_BUDGET."""
    return row.scope, row.budget, row.spent, msgspec.json.encode(row.leases).decode()
