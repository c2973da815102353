"""Python runs this at every start where the folder is in PYTHONPATH: it lets tests into our processes."""

import os

if "CHAOS_FOLDER" in os.environ:
    import chaos_hooks

    chaos_hooks.install(os.environ)
