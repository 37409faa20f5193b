"""Pages about a head and a model: the report, and the model card.

page        the report of a head, one HTML file
mistakes    the most confident mistakes, with their pictures
summary     predictions, confusions, calibration and a map, as numbers
plots       figures, with matplotlib
card        the model card, with programs that use the file
templates   rendering of HTML, Markdown and programs with jinja2
"""
