# %% [markdown]
# # Predict server, offline
# For a competition that sends its rows through `kaggle_evaluation`: the bundle's model answers them call by call.

# %%
import os
import sys
import time
from pathlib import Path

KAGGLE = Path(os.environ.get("KAGGLE_LLM_KAGGLE", Path.cwd().parent))  # a notebook runs in Kaggle's working folder
matches = [path for layout in ("datasets/*/*", "*") for path in KAGGLE.glob(f"input/{layout}/submission/boot.py")]
scripts = {path.resolve() for path in matches or (KAGGLE / "input").rglob("submission/boot.py")}
assert len(scripts) == 1, f"attach exactly one code dataset made by `kaggle-llm bundle`; attached are {scripts}"
(boot_script,) = scripts
sys.dont_write_bytecode = True  # the mount is read-only
sys.path[:0] = [str(boot_script.parent), str(boot_script.parents[1] / "src")]

# %%
import boot

from kaggle_llm.kaggle.server import open_server, run_server

deadline = time.time() + boot.find_limit(boot_script.parents[1])
boot.compare_machine(boot_script.parents[1], KAGGLE)
site = boot.install_wheels(boot_script.parents[1], KAGGLE)
os.environ |= boot.environment(boot_script.parents[1], site)  # for the model's process: the bundle's own packages
sys.path += boot.list_paths(site) if site else []  # after the image's own, which the gateway needs unchanged
_, _, _, *mounts = boot.predict_command(boot_script.parents[1], KAGGLE, deadline)
server = open_server(mounts)  # the model starts to load here
try:
    run_server(server)
finally:
    server.close()
