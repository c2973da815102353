"""Faults in an echo engine's process, put there by PYTHONPATH: a prompt that kills it, one that hangs it.

`DIE` in a prompt aborts the process as a segfault would; `HANG` stops it, ranks and all, without an end;
`FAULTS_EVERY=n` aborts it at its n-th prompt, whichever it is.
"""

import itertools
import os
import signal
import sys

if any("echo_engine" in argument for argument in sys.orig_argv):
    import worker.inbox
    from worker.protocol import Generate

    _take = worker.inbox.Inbox.take
    _last = int(os.environ.get("FAULTS_EVERY", "0")) or None
    _prompts = itertools.count(1)

    def take(inbox, *, block):
        """What the engine takes in, with its faults."""
        messages = _take(inbox, block=block)
        for message in messages or ():
            if not isinstance(message, Generate):
                continue
            prompt = bytes(message.prompt_token_ids)
            if b"DIE" in prompt or next(_prompts) == _last:
                os.kill(os.getpid(), signal.SIGABRT)
            if b"HANG" in prompt:
                os.kill(os.getpid(), signal.SIGSTOP)
        return messages

    worker.inbox.Inbox.take = take
