"""Which models there are, on this machine and on the Hub, and what their files say about them.

Nothing is imported here: `mlxm ls` wants what is on disk and must not pay for what talks to the Hub.
"""
