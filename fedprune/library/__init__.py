"""For notebooks and programs: own models and data without a file, one machine without clients.

Everything here is short for what the packages below do; the command line needs none of it.
"""
