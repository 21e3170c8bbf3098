"""Whole runs under attack: SIGKILL, a faulty object store, two drivers at once, lost nodes, hostile files.

``make chaos`` runs all of it. Tests that draw lots print their seed; the same attack again:

    CHAOS_SEED=1234 CHAOS_ROUNDS=20 python -m pytest tests/chaos/test_kills.py -o addopts="-q -s"

``CHAOS_SEED`` fixes what is attacked, in which order and after how much progress (the machine's timing stays
its own); ``CHAOS_ROUNDS`` is the number of kill rounds, ``CHAOS_TRIES`` that of drivers' races per store.
"""
