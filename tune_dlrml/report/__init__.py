"""The report of a search, from its study and event logs alone. Imports no ray, torch or mlflow."""

from tune_dlrml.report.figures import draw_all
from tune_dlrml.report.reading import SearchData, TrialData, read_data
from tune_dlrml.report.writing import ReportFiles, write_report

__all__ = ["ReportFiles", "SearchData", "TrialData", "draw_all", "read_data", "write_report"]
