"""What mlxm keeps in its home: the database, encrypted secrets, the audit trail and the lock on the home itself.

Nothing is imported here, so that a command which only asks who holds the lock does not pay for the database.
"""
