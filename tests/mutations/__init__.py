"""Planted bugs: each of them must turn the tests of its stage red. Run with `python -m tests.mutations`."""
