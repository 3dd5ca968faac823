"""Job queue: the ledger of a search, its storage, and the workers that run the jobs."""
