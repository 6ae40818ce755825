"""A run's records on their way out: `rows` reads the ledger, one module per format writes, `export` ties them up."""
