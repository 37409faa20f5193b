"""The report page: one HTML file about a head.

page            the page and its sections
numbers, classes, tags    the sections of each task
pictures        thumbnails of the images that are shown
plots           figures, with matplotlib
summary         what the sections show, calculated from logits
"""
