"""Steps, oldest first: v0001 …; each is final once released."""
