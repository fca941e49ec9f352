"""Support: what tests of several kinds share. Nothing here is a test, and nothing of it is shipped."""
