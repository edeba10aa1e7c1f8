"""What a model can do, and what it costs."""

from tnet.evaluation.cost import (
    ModuleCost,
    ParameterCount,
    Timing,
    cost_by_module,
    count_parameters,
    full_image_multiply_adds,
    multiply_adds,
    time_per_image_ms,
)
from tnet.evaluation.looks import check_data_fits, default_looks, evaluate_looks
from tnet.evaluation.report import (
    LooksRow,
    looks_label,
    looks_notes,
    looks_table,
    plot_looks,
    wilson_interval,
    write_rows_csv,
)

__all__ = [
    "LooksRow",
    "ModuleCost",
    "ParameterCount",
    "Timing",
    "check_data_fits",
    "cost_by_module",
    "count_parameters",
    "default_looks",
    "evaluate_looks",
    "full_image_multiply_adds",
    "looks_label",
    "looks_notes",
    "looks_table",
    "multiply_adds",
    "plot_looks",
    "time_per_image_ms",
    "wilson_interval",
    "write_rows_csv",
]
