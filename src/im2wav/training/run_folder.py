"""The folder of a run: one training at a time, and files of a start only once it is accepted."""

import errno
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

from im2wav.files import write_atomic
from im2wav.training.checkpoints import is_first_process

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
LOCK = ".lock"


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Lock the folder of a run until this process ends, however it ends.

    A POSIX record lock: it works over NFS, and DataLoader workers do not inherit it. On a file system without locks,
    only a warning.

    Raises:
        ValueError: another process is training into the folder, or it cannot be written.
    """
    if fcntl is None or not is_first_process():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                owner = os.pread(handle, 1000, 0).decode(errors="replace").strip()
                raise ValueError(
                    f"{folder} is in use by {owner or 'another training'}: wait until it ends, stop it, or set "
                    "run_name=NAME to train another"
                ) from error
            log.warning("%s has no locks (%s): do not start two trainings into it", folder, error.strerror)
        else:
            for place in (folder, folder / "checkpoints", folder / ".hydra"):
                for unfinished in place.glob(".writing-*"):  # of a run that was killed while it wrote
                    unfinished.unlink(missing_ok=True)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def accept_run(files: Mapping[Path, str]) -> None:
    """Write the log so far and the files that describe this start, such as `.hydra/`.

    A start that is rejected leaves those of the run that is already in the folder.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, MemoryHandler) and handler.target is not None:
            handler.flush()
            root.addHandler(handler.target)
            root.removeHandler(handler)
    if is_first_process():
        for path, text in files.items():
            write_atomic(path, text.encode())
