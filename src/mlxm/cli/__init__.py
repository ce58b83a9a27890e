"""The command line: parses, calls what lies below, prints.

Modules here load only when their command runs, so that `mlxm --help` stays quick.
"""
