"""What keeps the models on disk in order: removing them, finding what nobody needs, checking that they are whole.

Nothing outside the folders that models are kept in is ever touched.
"""
