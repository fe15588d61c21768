"""Build backend of the repository root: every build fails with a message that names the packages to install.

The root is a workspace without a package. Without this backend, `pip install .` falls back to setuptools, which
installs some folder.
"""

from typing import NoReturn

MESSAGE = (
    "error: the root of this repository is not a package. "
    "Install the two packages in it, in one command: pip install -c constraints.txt ./packages/esper-env "
    "./packages/esper-agent (or run `make test`, which makes .venv with everything)."
)


def _refuse(*_arguments: object, **_keywords: object) -> NoReturn:
    raise SystemExit(MESSAGE)


# The hooks of PEP 517 and PEP 660, and the requirement hooks that frontends call before them.
get_requires_for_build_wheel = _refuse
get_requires_for_build_sdist = _refuse
get_requires_for_build_editable = _refuse
prepare_metadata_for_build_wheel = _refuse
prepare_metadata_for_build_editable = _refuse
build_wheel = _refuse
build_sdist = _refuse
build_editable = _refuse
