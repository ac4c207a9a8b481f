"""Facts become a page and terminal tables."""

from overhaul.report._page import write_report
from overhaul.report._row import Row
from overhaul.report._rows import read_rows
from overhaul.report._terminal import step_table, verdict_text

__all__ = ["Row", "read_rows", "step_table", "verdict_text", "write_report"]
