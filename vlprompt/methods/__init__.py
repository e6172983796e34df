"""The methods, one short file each; importing this package registers all of them."""

import importlib
import pkgutil

for found in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(found.name)
