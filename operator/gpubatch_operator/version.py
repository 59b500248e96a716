"""The version of this package."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("gpubatch")
except PackageNotFoundError:  # out of a checkout
    VERSION = "unknown"
