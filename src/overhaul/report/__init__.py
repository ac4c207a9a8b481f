"""Facts become a page and terminal tables."""

from overhaul.report._comparison_table import RunSummary, comparison_table, summarize
from overhaul.report._facts_table import facts_table
from overhaul.report._page import write_report
from overhaul.report._row import Row
from overhaul.report._rows import read_rows
from overhaul.report._terminal import step_table, verdict_text

__all__ = [
    "Row",
    "RunSummary",
    "comparison_table",
    "facts_table",
    "read_rows",
    "step_table",
    "summarize",
    "verdict_text",
    "write_report",
]
