"""What a run is: variants, rows of the paper, presets, options, configuration."""

from .presets import PRESETS, Preset, find_preset
from .rows import TableName, table_rows
from .run import PRECISIONS, PROTOCOLS, SCHEDULES, DataConfig, RunConfig, StartConfig
from .variants import Variant

__all__ = [
    "PRECISIONS",
    "PRESETS",
    "PROTOCOLS",
    "SCHEDULES",
    "DataConfig",
    "Preset",
    "RunConfig",
    "StartConfig",
    "TableName",
    "Variant",
    "find_preset",
    "table_rows",
]
