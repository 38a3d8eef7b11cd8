"""Several scored runs compared in one report: numbers, tests, an HTML page, Markdown and plots."""
