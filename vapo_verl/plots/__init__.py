"""Drawing that report and evaluation share: panels, parts of HTML pages, pictures."""
