"""What every floor must agree on about a model: which names are names, and which files are whole.

Nothing is imported here, and what lies here needs nothing but the error tree.
"""
