"""The process that turns conversations into token ids with a model's own template and tokenizer.

Templates are programs written by strangers: a process can be limited and ended, a thread cannot.
"""
