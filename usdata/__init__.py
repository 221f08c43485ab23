"""A data lake for medical ultrasound: WebDataset shards, a Parquet catalog, SQL cohorts and a balanced loader.

    import usdata
    lake = usdata.Lake("lake")
    table = lake.sql("select organ, count(*) as images from samples group by all")
    loader = lake.cohort("organ_group = 'breast'").loader(batch_size=256)

Importing this package imports neither torch nor Prefect, and nothing heavy until a name is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from usdata.cohort import Cohort
    from usdata.errors import UsdataError
    from usdata.lake import Lake

__all__ = ["Cohort", "Lake", "UsdataError", "__version__"]
_HOME = {"Cohort": "usdata.cohort", "Lake": "usdata.lake", "UsdataError": "usdata.errors"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'usdata' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
