"""Executors as real processes, killed, stopped and cut off at random, and what is left of the guarantees then."""
