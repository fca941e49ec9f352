"""Soak: a real service under real faults, and afterwards every acknowledged record found exactly once.

``python -m tests.soak`` runs the matrix: each cell starts a service on a store of its own, loads it,
breaks something, mends it, and then walks all records by cursor. A cell fails if a record that was
acknowledged is missing or there twice, if one is there that nobody sent, or one that its sender was
told was not kept; if the service did not say what was wrong while it was; or if its memory grew
beyond its bound.

``load.py`` sends and remembers, ``proxy.py`` stands between service and Elasticsearch, ``rig.py`` holds
one cell's service and its checks, ``cells.py`` is the matrix.

Not here: kill points against a small store in one process (tests/e2e/test_crash.py), which says in
seconds what the matrix says in minutes.
"""
