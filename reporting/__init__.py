"""What conformance and bench reports share: the page (page.py) and small plots (svg.py).  Imports nothing else of ours."""
