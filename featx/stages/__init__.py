"""The stages: one verb each, from the artifact on its left to the one on its right.

    extract   images → features.h5            predict    images → labels, without torch
    train     features.h5 → head.safetensors  evaluate   labelled images → scores
    export    head.safetensors → model.onnx          report     a head on one page
    finetune  features-CUT.h5 → tuned.safetensors, a head with the network behind the cut
    audit     what may be wrong with the labels and images of features.h5
    relabel   a table of findings → a manifest with corrected labels
    similar   new images → features, and the images of a feature file that are like them
    check     is a file intact, and still what its source gives?
    merge     parts of features → their index, or one features.h5
    web_page  model.onnx → a page that runs it in the browser
    push      model.onnx → Hugging Face's hub
    doctor    what featx runs on, and what to do about it
    compare   the default head on each of several feature files, or several heads

Each is one plain function: paths and options in, a frozen report out. They raise ``FeatxError``,
never print, and never import each other.
"""
