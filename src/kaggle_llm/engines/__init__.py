"""Engines: from prompts to log-probabilities, texts and vectors, on transformers or vLLM, in worker processes."""

import logging

# At its import bitsandbytes warns that it could not download a kernel for 4-bit inference on a CPU: not needed here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
