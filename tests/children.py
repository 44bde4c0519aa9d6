"""
Processes that tests start and kill: children of a server that has imported everything and computed nothing.

A fork of the tests' own process would inherit what autograd has set up there, and torch's builds for GPUs then refuse
to train; a spawned process would import everything again.
"""

from __future__ import annotations

import multiprocessing
import os


# Arrow's allocator would start a thread in the server, and only a process of one thread is safe to fork.
os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["optidel_hf.pretraining.trainer", "optidel_hf.curation.pipeline"])
