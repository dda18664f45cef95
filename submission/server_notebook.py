# %% [markdown]
# # Predict server, offline
# For a competition that hands its rows out through `kaggle_evaluation`: the bundle's model answers them one by one.

# %%
import os
import sys
import time
from pathlib import Path

KAGGLE = Path(os.environ.get("KAGGLE_LLM_KAGGLE", Path.cwd().parent))  # a notebook runs in Kaggle's working folder
places = [path for layout in ("datasets/*/*", "*") for path in KAGGLE.glob(f"input/{layout}/submission/boot.py")]
found = {path.resolve() for path in places or (KAGGLE / "input").rglob("submission/boot.py")}
assert len(found) == 1, f"attach exactly one code dataset made by `kaggle-llm bundle`; attached are {found}"
(boot_script,) = found
sys.dont_write_bytecode = True  # the mount is read-only
sys.path[:0] = [str(boot_script.parent), str(boot_script.parents[1] / "src")]

# %%
import boot

from kaggle_llm.kaggle.server import open_server, run_server

deadline = time.time() + float(os.environ.get("KAGGLE_LLM_LIMIT", boot.LIMIT))
boot.look_at_machine(boot_script.parents[1], KAGGLE)
site = boot.install_wheels(boot_script.parents[1], KAGGLE)
os.environ |= boot.environment(boot_script.parents[1], site)  # the model's process has the bundle's own packages
sys.path += boot.list_paths(site) if site else []  # behind the image's own, which the gateway needs as they are
_, _, _, *mounts = boot.predict_command(boot_script.parents[1], KAGGLE, deadline)
server = open_server(mounts)  # the model is loading from here on
try:
    run_server(server)
finally:
    server.close()
