"""One self-contained HTML page of a reconstruction: what it shows (contents), how (build, page.html), and its words."""
