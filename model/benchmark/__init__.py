"""How fast the engine is: fixed rounds and the largest batch by modeltest's rules, and offline throughput.

It measures and writes down. It never changes what the engine does, and knows nothing of options or screens.
"""
