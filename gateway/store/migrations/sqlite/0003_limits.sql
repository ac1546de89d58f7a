-- Limits of tenants, users and keys, and the ledger of their budgets.
-- limits: a JSON object of what is limited. spent, leases: see gateway/store/limits.py.

ALTER TABLE tenants ADD COLUMN limits TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(limits));
ALTER TABLE users ADD COLUMN limits TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(limits));
ALTER TABLE keys ADD COLUMN limits TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(limits));

CREATE TABLE budgets (
    scope TEXT NOT NULL,
    budget TEXT NOT NULL,
    spent INTEGER NOT NULL,
    leases TEXT NOT NULL CHECK (json_valid(leases)),
    PRIMARY KEY (scope, budget)
) STRICT;
