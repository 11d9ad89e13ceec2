"""Scheduling of units on worker slots: retries, deadlines, blame. Imports the contract and the clock only."""
