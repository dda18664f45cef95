"""Engines: from prompts to log-probabilities, texts and vectors, on transformers or vLLM, in worker processes."""

import logging

# At its import it says that a kernel for 4-bit inference on a CPU could not be fetched from a hub: not needed here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
