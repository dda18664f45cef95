# %% [markdown]
# # Training, offline
# The experiment's train.py on the attached data and models; its run comes out as one archive.

# %%
import os
import sys
from pathlib import Path

KAGGLE = Path(os.environ.get("KAGGLE_LLM_KAGGLE", Path.cwd().parent))  # a notebook runs in Kaggle's working folder
matches = [path for layout in ("datasets/*/*", "*") for path in KAGGLE.glob(f"input/{layout}/submission/train_boot.py")]
scripts = {path.resolve() for path in matches or (KAGGLE / "input").rglob("submission/train_boot.py")}
assert len(scripts) == 1, f"attach exactly one code dataset made by `kaggle-llm push --train`; attached are {scripts}"
(boot_script,) = scripts
sys.dont_write_bytecode = True  # the mount is read-only
sys.path.insert(0, str(boot_script.parent))

# %%
import train_boot

train_boot.main(code=boot_script.parents[1], root=KAGGLE)
