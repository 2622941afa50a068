"""Compiled kernels on disk, in a form that no crash, race or damage can turn into wrong code.

Numba keeps an index and numbered files of machine code. Two processes that save at once can give two kernels one
number, and a process that is killed between writing the one and the other leaves an index that points to older code.
So here each specialisation of a kernel is one file, named after all that its code depends on but the sources, which is
put in its place whole and begins with a checksum over itself and the sources.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import pickle
import uuid
import warnings
from collections.abc import Callable
from typing import Any

import numba
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

_DIGEST_SIZE = hashlib.sha256().digest_size

_warned = False


class _Files:
    """What Numba asks of the files of one function."""

    def __init__(self, stem: pathlib.Path) -> None:
        self._stem = stem

    def _path_and_stamp(self, key: Any) -> tuple[pathlib.Path, bytes]:
        name = repr((key, bool(numba.config.BOUNDSCHECK))).encode()  # Numba's key leaves bounds checks out
        path = self._stem.with_name(f"{self._stem.name}.{hashlib.sha256(name).hexdigest()[:16]}.nbc")
        return path, name + numba.__version__.encode() + _hash_of_sources()

    def load(self, key: Any) -> Any:
        """Return what was saved for `key`, None if that was nothing, or with other sources, or has been damaged."""
        path, stamp = self._path_and_stamp(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, data = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
        return pickle.loads(data) if hashlib.sha256(stamp + data).digest() == digest else None

    def save(self, key: Any, value: Any) -> None:
        """Save `value` for `key`, unless another process just did."""
        path, stamp = self._path_and_stamp(key)
        data = dumps(value)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            partial.write_bytes(hashlib.sha256(stamp + data).digest() + data)
            partial.replace(path)
        except OSError:
            if self.load(key) is None:
                raise
        finally:
            partial.unlink(missing_ok=True)


class _Cache(FunctionCache):
    """Numba's cache of a function, with files as above, and without which a call works as well."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _Files(pathlib.Path(self.cache_path, self._impl.filename_base))

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        """Return what tells one file of the function from another: types, the CPU, and what it closes over, by name.

        Its code does not: the sources are in the stamp of a file.
        """
        contents = [cell.cell_contents for cell in self._py_func.__closure__ or ()]
        names = [f"{one.__module__}.{one.__qualname__}" if callable(one) else repr(one) for one in contents]
        return sig, codegen.magic_tuple(), names

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn(f"{self.cache_path}: {error}")


def attach(dispatcher: Any) -> None:
    """Make `dispatcher` load and save its compiled code, where there is a folder for it."""
    try:
        dispatcher._cache = _Cache(dispatcher.py_func)
    except RuntimeError:  # from Numba, where neither NUMBA_CACHE_DIR nor its other places can be written to
        _warn("no folder can be written to")


def _warn(reason: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"fastloss compiles its kernels anew in every process, because it cannot save them: {reason}. "
            "Set NUMBA_CACHE_DIR to a folder that can be written to.",
            RuntimeWarning,
            stacklevel=2,
        )


@functools.cache
def _hash_of_sources() -> bytes:
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()
