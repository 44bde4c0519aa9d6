"""
The `optidel` command. The recipes call the same functions.

    optidel curate --dataset my_images --budget 0.05 --output_dir out
    accelerate launch recipes/pretrain.py --dataset out/curated --output_dir out/vit
    optidel evaluate --models optidel=out/vit none --dataset kvasir-seg --output_dir out/evaluation
    optidel report --curation_dir out
"""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable, Sequence

from optidel_hf import commands
from optidel_hf.commands import say
from optidel_hf.errors import Preempted, UserError


logger = logging.getLogger("optidel_hf")

MAKE_ROOM = "make room there, and the same command goes on from here"
NO_ACCESS, NO_FOLDER = "give a place that may be read and written", "give a folder for folders and a file for files"
WAYS_OUT = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS), MAKE_ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM), NO_ACCESS),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST), NO_FOLDER),
}
PREEMPTED = 75  # exit code after SIGTERM, `EX_TEMPFAIL` of sysexits.h: start the same command again
COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "patches": lambda arguments: commands.curate(arguments, "patches", until="patches"),
    "score": lambda arguments: commands.curate(arguments, "score", until="scores"),
    "select": lambda arguments: commands.curate(arguments, "select", until="selection"),
    "mosaic": lambda arguments: commands.curate(arguments, "mosaic"),
    "curate": commands.curate,
    "pretrain": commands.pretrain,
    "evaluate": commands.evaluate,
    "information": commands.information,
    "reproduce": commands.reproduce,
    "report": commands.report,
    "push": commands.push,
    "rebuild": commands.rebuild,
    "status": commands.status,
    "theory": commands.theory,
    "demo": commands.demo,
    "sample": commands.sample,
    "testbed": commands.testbed,
    "env": commands.env,
}
USAGE = """usage: optidel COMMAND [flags]

  curate     images to a curated dataset: key patches, scores, selection, mosaics
  patches    ... up to the key patches          score     ... up to the scores
  select     ... up to the selection            mosaic    ... up to the curated images
  status     how far a curation has come
  pretrain   a ViT on curated images            evaluate  models by downstream segmentation
  reproduce  does it help: arms x budgets x seeds, pre-trained and judged
  information  of models on held-out frames, in bits
  report     one HTML file of it all            demo      the whole method on the embedded sample
  push       what was made to the Hub           rebuild   curated images from a published selection
  theory     when to keep hard samples, by a perceptron's theory
  sample     generated images with masks, of colonoscopy or of cells
  testbed    a pool whose redundancy and junk are known
  env        versions, for bug reports

`optidel COMMAND --help` lists the flags; --config FILE reads them from YAML."""


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run one command. A user's mistake is one sentence on stderr and exit code 2; a run that SIGTERM ended in good order
    exits with [`PREEMPTED`].

    Args:
        arguments (`Sequence[str]`, *optional*): the command and its flags, by default those of the process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        say(USAGE)
        return 0
    command, *flags = arguments
    if command not in COMMANDS:
        say(f"optidel: '{command}' is no command.\n\n{USAGE}", sys.stderr)
        return 2
    try:
        COMMANDS[command](flags)
    except UserError as error:
        say(f"optidel {command}: {' '.join(str(error).split())}", sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in WAYS_OUT:
            raise
        say(f"optidel {command}: {error}; {WAYS_OUT[error.errno]}", sys.stderr)
        return 2
    except Preempted as stopped:
        say(f"optidel {command}: {stopped}", sys.stderr)
        return PREEMPTED
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here", sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
