from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = (
    "mlx",
    "mlx_lm",
    "mlx_vlm",
    "transformers",
    "numpy",
    "huggingface_hub",
    "httpx",
    "sqlite3",
    "tokenizers",
    "jinja2",
)
PROGRAM = """
import sys
from pathlib import Path
from mlxm.catalog.characteristics import describe
from mlxm.catalog.local import LocalModels, Roots
from mlxm.catalog.memory import estimate
from mlxm.store.aliases import Alias
root = Path(sys.argv[1])
LocalModels(Roots(home=root, hub_cache=root)).list()
print(sorted(set(sys.argv[2].split(",")) & sys.modules.keys()))
"""


def test_a_list_of_models_loads_nothing_heavy(tmp_path: Path) -> None:
    """`mlxm ls` answers at once; the database's own library is all that a list with aliases needs."""
    command = [sys.executable, "-c", PROGRAM, tmp_path, ",".join(HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "['sqlite3']\n"
