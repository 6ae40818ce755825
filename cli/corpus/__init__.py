"""A user's corpus on its way into the ledger: `read` knows files and their rules, `store` knows Postgres."""
