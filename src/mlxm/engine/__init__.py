"""How a model's tokens become an answer: pure Python, no mlx, so that it can be tested in every order of events."""
