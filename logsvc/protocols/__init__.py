"""Protocols: one module each. They decode what a client sends and render what it expects back.

Every protocol ends in ``Ingest.accept``; none decides whether a record is taken, what its fields
mean or what is secret. Decoding may be handed a body of any bytes and raises nothing but
``BadInput``; one bad item never takes its neighbours along.

``bodies`` undoes Content-Encoding for all of them.
"""
