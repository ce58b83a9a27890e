"""API dialects: structs of what clients send and read, and pure translation to and from the neutral types.

Nothing here does I/O or knows the server; the server and the providers both stand on it.
"""
