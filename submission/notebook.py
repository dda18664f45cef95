# %% [markdown]
# # Prediction, offline
# The bundle's `boot.py` finds what is attached, runs the prediction as a process and shows its log.

# %%
import os
import sys
from pathlib import Path

KAGGLE = Path(os.environ.get("KAGGLE_LLM_KAGGLE", "/kaggle"))  # moved by rehearsals
matches = [path for layout in ("datasets/*/*", "*") for path in KAGGLE.glob(f"input/{layout}/submission/boot.py")]
scripts = {path.resolve() for path in matches or (KAGGLE / "input").rglob("submission/boot.py")}
assert len(scripts) == 1, f"attach exactly one code dataset made by `kaggle-llm bundle`; attached are {scripts}"
(boot_script,) = scripts
sys.dont_write_bytecode = True  # the mount is read-only
sys.path.insert(0, str(boot_script.parent))

# %%
import boot

boot.main(code=boot_script.parents[1], root=KAGGLE)

# %%
boot.show_result(KAGGLE / "working")
