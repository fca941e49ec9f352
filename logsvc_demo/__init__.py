"""The demo's applications: programs like anybody's, which log through ``shippers`` and know nothing of the service.

``platform`` runs tasks against a SQLite database, ``gateway`` is what some tasks depend on,
``storefront`` writes a plain log file. ``logsvc demo`` starts them as processes.
"""
