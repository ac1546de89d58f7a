-- Limits of tenants, users and keys, and the ledger of their budgets.
-- limits: a JSON object of what is limited. spent, leases: see gateway/store/limits.py.

ALTER TABLE tenants ADD COLUMN limits JSONB NOT NULL DEFAULT '{}';
ALTER TABLE users ADD COLUMN limits JSONB NOT NULL DEFAULT '{}';
ALTER TABLE keys ADD COLUMN limits JSONB NOT NULL DEFAULT '{}';

CREATE TABLE budgets (
    scope TEXT NOT NULL,
    budget TEXT NOT NULL,
    spent BIGINT NOT NULL,
    leases JSONB NOT NULL,
    PRIMARY KEY (scope, budget)
);
