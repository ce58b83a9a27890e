"""What mlx-lm itself answers: (folder, [[prompt ids, number of tokens], …]) on stdin, lists of ids on stdout."""

import json
import sys
import warnings
from pathlib import Path

from mlxm.device.blas import open_blas

open_blas()
warnings.simplefilter("ignore")

from mlx_lm import load, stream_generate  # noqa: E402  (after the BLAS)

folder, jobs = json.load(sys.stdin)
model, tokenizer = load(str(Path(folder)))
answers = [
    [step.token for step in stream_generate(model, tokenizer, prompt=ids, max_tokens=num_tokens)]
    for ids, num_tokens in jobs
]
print(json.dumps(answers))  # noqa: T201
