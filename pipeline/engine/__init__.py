"""Units of work to worker slots: scheduling, retries, deadlines, blame. Imports the contract and the clock only."""
