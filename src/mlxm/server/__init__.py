"""The HTTP face: Litestar on an embedded Granian, in front of whatever answers chats.

It imports nothing of MLX; models run in processes of their own behind the backend that it is given.
"""
