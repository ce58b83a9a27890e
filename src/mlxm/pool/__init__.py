"""Which models are loaded and the only door to the processes that run them."""
