"""A local kernel as ``ipykernel_launcher`` starts it, that notes when its steps are over."""

import time

steps = [("kernel: interpreter", time.monotonic_ns())]

import json
import os
import sys
from typing import Any

from ipykernel.kernelapp import IPKernelApp

steps.append(("kernel: ipykernel imported", time.monotonic_ns()))
app: Any = IPKernelApp.instance()
app.initialize(sys.argv[1:])
steps.append(("kernel: IPython ready", time.monotonic_ns()))
with open(os.environ.pop("EXECUTOR_ML_TRACE"), "a", encoding="utf-8") as file:  # noqa: PTH123
    file.writelines(json.dumps({"step": step, "at": at}) + "\n" for step, at in steps)
app.start()
