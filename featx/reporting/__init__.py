"""Pages about a head and a model: the report, and the model card.

page        the report of a head, one HTML file
likeness    pictures beside those that are like them
findings    the page of an audit, one HTML file
summary     predictions, confusions, calibration, a map, and the worst mistakes
classify    the page that runs a model in the browser, by onnxruntime-web
plots       figures, with matplotlib
hub_card    README files of Hugging Face's hub, with the metadata that it reads
card        the model card, with programs that use the file
templates   rendering of HTML, Markdown and programs with jinja2
"""
