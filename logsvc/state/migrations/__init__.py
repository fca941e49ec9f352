"""Migrations: how an older state database becomes this version's, one step per file in ``versions/``."""
