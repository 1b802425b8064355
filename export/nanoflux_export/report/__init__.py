"""The parts of the page that `report_html` puts together, one file per section."""
