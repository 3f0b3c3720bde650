"""Plots shared by report and evaluation: panels, parts of HTML pages, pictures."""
