"""Writes golden files: what this version of the library stores, for all later ones to read.

    python tests/golden/write.py FOLDER             writes all entries
    python tests/golden/write.py FOLDER NAME ...    writes some, beside those that are there

Golden files are never written anew: where a file of an entry is there, nothing is written. A new
class or a new form gets a new entry (`MAKERS` in `tests/golden/makers.py`), written into
`tests/golden` by its name. Beside the files of each entry lies an `.npz` of the dense values, made
of the tree before it was saved, and `index.json` lists the entries with checksums and versions.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path


def write(folder: Path, names: list[str]) -> None:
    """Writes entries into a folder and its index.

    Args:
        folder: where to; made where it is not there.
        names: of entries; empty for all.

    Raises:
        FileExistsError: an entry is there already; all such are named.
        KeyError: there is no such entry.
    """
    import jax

    import nnopt_jax as nnopt
    from tests.golden.makers import MAKERS, files_of, place_of, read_index, write_index
    from tests.golden.values import sha256

    names = names or list(MAKERS)
    if unknown := [name for name in names if name not in MAKERS]:
        raise KeyError(f"no such entry: {', '.join(unknown)}; known are {', '.join(MAKERS)}")
    index = read_index(folder)
    there = [name for name in names if name in index or files_of(folder, name)]
    if there:
        raise FileExistsError(f"golden files are never rewritten, and {folder} holds "
                              f"{', '.join(there)}")  # fmt: skip
    versions = {"library": nnopt.__version__, "jax": jax.__version__,
                "python": platform.python_version()}  # fmt: skip
    for name in names:
        place = place_of(folder, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        told = MAKERS[name](place)
        files = {path.relative_to(folder).as_posix(): sha256(path)
                 for path in files_of(folder, name)}  # fmt: skip
        index[name] = told | {"files": files} | versions
        write_index(folder, index)
        print(f"{name}  {sum((folder / file).stat().st_size for file in files):,} bytes")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here.parents[1]), str(here)]  # the repository, and what the run imports
    write(Path(sys.argv[1]), sys.argv[2:])
